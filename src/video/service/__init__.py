"""The frame decoding service: worker pool, network server and client behind `read(Request) -> Reply`."""
