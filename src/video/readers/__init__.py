"""One file per decoding backend, all behind `read(Request) -> Reply`."""
