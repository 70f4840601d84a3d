"""The only part that touches sockets, the clock and the event loop: netlink, the control socket, the driver."""
