"""The frame decoding service: workers, server and client behind `read(Request) -> Reply`."""
