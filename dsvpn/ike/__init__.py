"""IKEv2 (RFC 7296) without input and output: datagrams, a clock value and random octets in; datagrams, events out."""
