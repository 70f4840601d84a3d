"""Two gateways over a veth pair, each contestant in namespaces of its own."""
