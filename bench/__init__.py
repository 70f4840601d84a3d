"""What dsvpn reaches, measured against its peers and against its own parts. See bench/README.md."""
