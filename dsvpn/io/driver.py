"""The event loop around a gateway: descriptors in, commands and datagrams out, one timer.

Two drivers of the data plane: "workers" gives its descriptors to native threads, which need no interpreter for a
packet; "uvloop" drains them from the event loop, all in one thread. "auto" is "workers". Either way the loop sleeps
while nothing happens, but for a look at the counters every few seconds.
"""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack, suppress
from functools import partial
from ipaddress import ip_address
from typing import Any

import structlog
import uvloop

import dsvpn
import dsvpn_native
from dsvpn.addresses import Address
from dsvpn.commands import LookUp
from dsvpn.config import Config, TunnelConfig
from dsvpn.config.advice import advice
from dsvpn.config.changes import compare
from dsvpn.config.credentials import Material, crl_urls, read_materials
from dsvpn.config.load import load_config
from dsvpn.errors import DsvpnError, HostError, MisuseError
from dsvpn.gateway import Gateway
from dsvpn.gateway.status import certificates
from dsvpn.io.control import ControlServer
from dsvpn.io.crl import CrlFetcher
from dsvpn.io.dataplane import Commander
from dsvpn.io.kem import native_kems
from dsvpn.io.keylog import KeyLog
from dsvpn.io.netlink import Netlink, forwards
from dsvpn.io.resolver import Resolver
from dsvpn.io.routes import RouteAdded, RouteChange
from dsvpn.io.sources import Source
from dsvpn.io.state import token_secret
from dsvpn.observe.limit import RateLimit
from dsvpn.observe.log import configure_log
from dsvpn.policy import guarded_prefixes, tunnel_mtu

_log = structlog.get_logger("dsvpn")

#: Seconds between looks at the adjacencies' counters, which tell whether a peer or a shortcut is in use.
_TRAFFIC_INTERVAL = 2.0
#: The same while the gateway waits for a peer's first packet, which is a few seconds at most.
_FIRST_PACKET_INTERVAL = 0.02
#: Seconds until the next of these looks for each peer that is waited for: they must not cost more, the more call.
_FIRST_PACKET_SHARE = 0.0005
#: Punts taken, and vectors forwarded, before the event loop gets its turn again.
_PUNT_BUDGET = 256
_DRAIN_BUDGET = 8
#: uvloop's timers count milliseconds. The floor also keeps a deadline that stays in the past from eating the CPU.
_TIMER_RESOLUTION = 0.001
#: Log lines of one kind: at once, and a second in the long run.
_LOG_BURST = 50
_LOG_RATE = 5.0
#: New objects between two looks of the garbage collector. Those of an IKE SA live as long as it: looking more often, as
#: Python does by itself, costs a handshake up to a tenth of its time and finds nothing.
_COLLECT_AFTER = 20_000

SECTIONS = ("summary", "nhrp", "peers", "sa", "routes", "counters", "certificates")


def run_gateway(config: Config) -> None:
    """Run a gateway until SIGTERM or SIGINT; SIGHUP reloads. HostError if the machine does not
    let it; `require_host` first tells most causes of that."""
    uvloop.run(_run(config))


async def _run(config: Config) -> None:
    with ExitStack() as undo:
        driver = Driver(config, undo)
        gc.freeze()
        gc.set_threshold(_COLLECT_AFTER)
        await driver.run()


class Driver:
    """A gateway with its surroundings. What it makes is put on `undo`, which removes it in the reverse order."""

    def __init__(self, config: Config, undo: ExitStack) -> None:
        self._config = config
        self._started = time.monotonic()
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at: float | None = None
        self._looking = False
        self._resyncing = False
        self._event_limits: dict[str, RateLimit] = {}
        self._defects = RateLimit(rate=0.2, burst=5)
        self._sources: dict[str, Source] = {}
        self._stop = asyncio.Event()
        self._failure: DsvpnError | None = None

        self._control = ControlServer(config.gateway.control_socket_path, self._answer)
        undo.callback(self._control.close)
        self._netlink = Netlink()
        undo.callback(self._netlink.close)
        for name in config.tunnels:
            if self._netlink.has_link(name):
                raise HostError(f"tunnel.{name}: a device named {name} exists already; stop its owner or rename one")
        # Before the tunnels are there as well as after they are gone.
        guards = self._netlink.guards(config.gateway.name)
        undo.callback(guards.clear)
        vrfs = {tunnel.vrf for tunnel in config.tunnels.values() if tunnel.vrf is not None}
        others = {self._netlink.vrf(vrf).table: guarded_prefixes(config, vrf) for vrf in vrfs}
        guards.keep(guarded_prefixes(config), others)
        self._uses_workers = config.gateway.driver != "uvloop"
        key_log = self._open_key_log(undo)
        self._dataplane = self._open_dataplane()
        self._resolver = Resolver(self._on_looked_up)
        undo.callback(self._resolver.close)
        self._commander = Commander(self._dataplane, self._netlink, key_log, self._resolver.look_up)
        undo.callback(self._commander.close)
        for name, tunnel in config.tunnels.items():
            self._make_tunnel(name, tunnel, undo)
        self._gateway = Gateway(
            config,
            random=os.urandom,
            allocate_spi=self._dataplane.allocate_spi,
            release_spi=self._dataplane.release_spi,
            route_lookup=self._netlink.route_lookup,
            key_log=None if key_log is None else key_log.ike_sa,
            wall_clock=time.time,
            token_secret=self._token_secret(),
            kems=native_kems(),
            encap_workers=max(1, self._threads() // 2),
        )
        self._crls = CrlFetcher(crl_urls(config), self._guarded(self._read_materials), self._on_crl_error)
        self._say_warnings(config.materials)
        for text in advice(config):
            _log.warning(text, name="configuration")

    # -- making --------------------------------------------------------------------------------------------

    def _open_key_log(self, undo: ExitStack) -> KeyLog | None:
        directory = self._config.gateway.key_log
        if directory is None:
            return None
        key_log = KeyLog(directory)
        undo.callback(key_log.close)
        _log.warning(
            f"KEY LOG IS ON: all keys go to {directory}. Whoever reads it can decrypt this gateway's traffic. "
            "Remove gateway.key_log when the debugging is done.",
            name="key_log_on",
        )
        return key_log

    def _token_secret(self) -> bytes:
        if not any(tunnel.protected for tunnel in self._config.tunnels.values()):
            return b""
        try:
            return token_secret(self._config.gateway.state_directory_path)
        except HostError as error:
            _log.warning(
                f"{error}; after a crash, peers notice that this gateway has started anew by dead peer detection only",
                name="no_state",
            )
            return b""

    def _threads(self) -> int:
        """Native threads that forward: 0 if the event loop does."""
        threads = self._config.gateway.worker_threads
        if not self._uses_workers:
            return 0
        return dsvpn_native.Dataplane.best_worker_threads() if threads == "auto" else threads

    def _open_dataplane(self) -> dsvpn_native.Dataplane:
        tunnels = self._config.tunnels.values()
        vrf = self._config.gateway.underlay_vrf
        # Each worker of a direction has its queue and its socket; the event loop drains one of each.
        dataplane = dsvpn_native.Dataplane(queues=max(1, self._threads() // 2))
        try:
            dataplane.open_underlay(
                esp=any(tunnel.protected for tunnel in tunnels),
                gre=any(not tunnel.protected for tunnel in tunnels),
                device=0 if vrf is None else self._netlink.vrf(vrf).index,
                dont_fragment=all(tunnel.df == "set" for tunnel in tunnels),
            )
        except OSError as error:
            raise HostError(_reason(error)) from None
        return dataplane

    def _make_tunnel(self, name: str, tunnel: TunnelConfig, undo: ExitStack) -> None:
        try:
            identifier = self._dataplane.add_tunnel(
                name,
                key=tunnel.key,
                protected=tunnel.protected,
                redirect=tunnel.nhrp.redirect,
                mss_clamp=tunnel.mss_clamp,
                copy_dscp=tunnel.copy_dscp,
            )
        except OSError as error:
            raise HostError(f"tunnel.{name}: {_reason(error)}") from None
        undo.callback(self._dataplane.remove_tunnel, identifier)
        self._commander.add_tunnel(name, identifier)
        source = self._find_source(tunnel)
        routes = [(route.prefix, route.gateways) for route in tunnel.routes]
        self._netlink.add_tunnel(name, tunnel.addresses, self._device_mtu(tunnel, source), routes, tunnel.vrf)
        for version in sorted({interface.version for interface in tunnel.addresses}):
            if not forwards(version):
                setting = "net.ipv4.ip_forward" if version == 4 else "net.ipv6.conf.all.forwarding"
                _log.warning(
                    f"{name}: this host does not forward IPv{version}, so only its own packets use the tunnel; "
                    f"set {setting}=1 if there are networks behind it",
                    name="not_forwarding",
                )

    # -- running -------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Run until a signal says to end, then say goodbye to the peers.

        DsvpnError if the data plane cannot forward any more: whoever started the gateway starts it anew, which a
        gateway that runs on without forwarding would keep them from.
        """
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop.set)
        loop.add_signal_handler(signal.SIGHUP, self._guarded(self.reload))
        with ExitStack() as undo:
            self._gateway.start(time.monotonic())
            self._take_sources()
            self._take_routes(self._netlink.resync())
            self._watch(loop, undo)
            await self._control.start()
            undo.callback(self._say_goodbye)
            self._flush()
            for work in (self._watch_traffic(), self._probe_servers(), self._crls.run()):
                undo.callback(loop.create_task(work).cancel)
            self._say_up()
            await self._stop.wait()
        _log.info(f"{self._config.gateway.name} has ended", name="down")
        if self._failure is not None:
            raise self._failure

    def _watch(self, loop: asyncio.AbstractEventLoop, undo: ExitStack) -> None:
        """Watch every descriptor until `undo`: libuv aborts the process when one closes that it still watches."""
        readers: dict[int, Callable[[], object]] = {
            self._dataplane.punt_descriptor: self._on_punts,
            self._netlink.fileno(): self._on_netlink,
        }
        if self._uses_workers:
            self._dataplane.start_workers(self._threads())
            undo.callback(self._dataplane.stop_workers)
        else:
            for descriptor, _ in self._dataplane.descriptors():
                readers[descriptor] = partial(self._drain, descriptor)
        for descriptor, callback in readers.items():
            loop.add_reader(descriptor, self._guarded(callback))
            undo.callback(loop.remove_reader, descriptor)

    def _say_up(self) -> None:
        _log.info(
            f"{self._config.gateway.name} is up: {', '.join(self._config.tunnels)}",
            name="up",
            driver="workers" if self._uses_workers else "uvloop",
            aead=self._dataplane.aead_backend,
        )
        for name, state in self._dataplane.offloads().items():
            if state.startswith(("off: the", "failed")):
                _log.warning(f"{name}: {state}", name="offload", offload=name, state=state)
        if dsvpn_native.BUILD_PROFILE == "debug":
            _log.warning("the data plane is a debug build, many times slower than a release build", name="debug_build")

    def _say_goodbye(self) -> None:
        with suppress(Exception):  # whatever fails here must not keep what this process made from being removed
            self._gateway.shutdown(time.monotonic())
            self._flush()
        if self._timer is not None:
            self._timer.cancel()

    def _guarded(self, callback: Callable[[], object]) -> Callable[[], None]:
        """A callback that outlives a defect: what one packet or message causes ends with it."""

        def call() -> None:
            try:
                callback()
            except DsvpnError as error:
                if admitted := self._defects.admit(time.monotonic()):
                    _log.error(str(error), name="error", **admitted.fields)
            except Exception as error:
                if admitted := self._defects.admit(time.monotonic()):
                    _log.exception(f"unexpected {type(error).__name__}: {error}", name="defect", **admitted.fields)

        return call

    # -- inputs --------------------------------------------------------------------------------------------

    def _drain(self, descriptor: int) -> None:
        try:
            self._dataplane.drain(descriptor, _DRAIN_BUDGET)
        except RuntimeError as error:
            self._fail(DsvpnError(f"the data plane failed: {error}"))
        except OSError:
            # The device is gone, which its punt tells: it would be ready for ever.
            asyncio.get_running_loop().remove_reader(descriptor)

    def _fail(self, failure: DsvpnError) -> None:
        """End the gateway with an error. The first one counts."""
        if self._failure is None:
            self._failure = failure
            _log.critical(str(failure), name="failed")
        self._stop.set()

    def _on_punts(self) -> None:
        try:
            punts = self._dataplane.take_punts(_PUNT_BUDGET)
        except RuntimeError as error:
            self._fail(DsvpnError(f"the data plane failed: {error}"))
            return
        for punt in punts:
            if punt.kind == "gone":
                name = self._commander.tunnel_name(punt.tunnel)
                self._fail(HostError(f"tunnel.{name}: somebody took the network device away; start the gateway anew"))
                continue
            self._guarded(partial(self._commander.deliver, punt, self._gateway, time.monotonic()))()
        self._flush()

    def _on_netlink(self) -> None:
        try:
            self._take_routes(self._netlink.read_changes())
            self._take_sources()
        finally:
            self._flush()
        if self._netlink.busy and not self._resyncing:
            self._resyncing = True
            asyncio.get_running_loop().call_soon(self._go_on_resyncing)

    def _go_on_resyncing(self) -> None:
        self._resyncing = False
        self._guarded(self._on_netlink)()

    def _on_looked_up(self, command: LookUp, addresses: tuple[Address, ...], error: str) -> None:
        self._guarded(
            lambda: self._gateway.looked_up(command.tunnel, command.protocol, addresses, error, time.monotonic())
        )()
        self._guarded(self._flush)()

    def _on_timer(self) -> None:
        self._timer = self._timer_at = None
        self._guarded(partial(self._gateway.handle_timer, time.monotonic()))()
        self._guarded(self._flush)()

    async def _watch_traffic(self) -> None:
        while True:
            await asyncio.sleep(_TRAFFIC_INTERVAL)
            self._guarded(self._take_traffic)()

    async def _probe_servers(self) -> None:
        while (interval := self._gateway.probe_interval) is not None:
            await asyncio.sleep(interval)
            self._guarded(self._probe)()

    def _probe(self) -> None:
        self._gateway.probe(self._commander.traffic(self._gateway.probed()), time.monotonic())
        self._flush()

    def _look_for_traffic(self) -> None:
        self._looking = False
        # Of those that wait alone: there may be thousands of others.
        self._guarded(partial(self._take_traffic, self._gateway.awaiting_packets()))()

    def _take_traffic(self, adjacencies: Iterable[int] | None = None) -> None:
        now = time.monotonic()
        busy = self._gateway.traffic(self._commander.traffic(adjacencies), now)
        self._gateway.sa_traffic(self._commander.sa_traffic(busy), now)
        self._flush()

    def _take_routes(self, changes: Iterable[RouteChange]) -> None:
        now = time.monotonic()
        for change in changes:
            if isinstance(change, RouteAdded):
                self._gateway.route_added(change.tunnel, change.prefix, change.next_hop, now)
            else:
                self._gateway.route_removed(change.tunnel, change.prefix, now)

    def _take_sources(self) -> None:
        now = time.monotonic()
        for name, tunnel in self._config.tunnels.items():
            source = self._find_source(tunnel)
            before = self._sources.get(name)
            if source == before:
                continue
            self._sources[name] = source
            if source.address is None:
                _log.warning(
                    f"{name}: {tunnel.source} has no usable address at the moment; waiting for one", name="no_source"
                )
            self._gateway.source_changed(name, source.address, source.mtu, now)
            mtu = self._device_mtu(tunnel, source)
            if before is not None and mtu != self._device_mtu(tunnel, before):
                self._guarded(partial(self._netlink.set_mtu, name, mtu))()

    def _device_mtu(self, tunnel: TunnelConfig, source: Source) -> int:
        version = 4 if source.address is None else source.address.version
        return tunnel_mtu(tunnel, source.mtu, version, self._config.ipsec.get(tunnel.ipsec))

    def _find_source(self, tunnel: TunnelConfig) -> Source:
        wanted: str | Address = tunnel.source_address or tunnel.source
        # An interface may have addresses of both families: the NHSs' decides.
        listed = [entry.nbma for entry in tunnel.nhrp.nhs] + [entry.nbma for entry in tunnel.nhrp.map]
        known = [nbma.version for nbma in listed if not isinstance(nbma, str)]
        return self._netlink.source(wanted, known[0] if known else 4)

    # -- reloading -----------------------------------------------------------------------------------------

    def reload(self) -> dict[str, list[str]]:
        """Read the configuration anew, with the keys, certificates and revocation lists that it names, and fetch those
        that have a URL. What a running gateway can take over, it takes; the rest waits for a restart, and is named.

        What cannot be read leaves everything as it was: ConfigurationError or HostError says why.
        """
        fresh = load_config(self._config.file)
        taken, waiting, running = compare(self._config, fresh)
        materials = read_materials(running, running.file, time.time(), self._crls.lists)
        psks = {name: material.psk for name, material in materials.items() if material.psk}
        before, self._config = self._config, running.model_copy(update={"materials": materials, "psks": psks})
        if before.gateway != running.gateway:
            configure_log(running.gateway.log_level, running.gateway.log_format)
        self._say_warnings(materials)
        self._gateway.reconfigure(self._config, time.monotonic())
        self._flush()
        self._crls.fetch_now(crl_urls(self._config))
        _log.info("keys, certificates and revocation lists were read anew", name="reloaded", taken=taken)
        if waiting:
            _log.warning(
                f"changed, but not before a restart: {', '.join(waiting)}", name="restart_needed", keys=waiting
            )
        return {"taken": taken, "waiting": waiting}

    def _redirect(self, request: Mapping[str, Any]) -> dict[str, int]:
        try:
            target = ip_address(str(request["redirect"]))
        except ValueError:
            raise MisuseError(f"{request['redirect']!r} is no address to redirect to") from None
        asked = self._gateway.redirect(target, request.get("identity"), time.monotonic())
        self._flush()
        _log.info(f"{asked} peers were asked to go to {target}", name="redirecting")
        return {"asked": asked}

    def _read_materials(self) -> None:
        materials = read_materials(self._config, self._config.file, time.time(), self._crls.lists)
        self._say_warnings(materials)
        self._gateway.replace_materials(materials, time.monotonic())
        self._flush()

    def _say_warnings(self, materials: Mapping[str, Material]) -> None:
        for material in materials.values():
            for text in material.warnings:
                _log.warning(text, name="credentials")

    def _on_crl_error(self, error: HostError) -> None:
        _log.warning(f"{error}; the list fetched before stays in use, if there is one", name="crl_not_fetched")

    # -- outputs -------------------------------------------------------------------------------------------

    def _flush(self) -> None:
        """Carry out what the gateway wants. Tables come before the datagrams that let a peer use them."""
        now = time.monotonic()
        self._commander.carry_out(self._gateway.commands())
        self._commander.send(self._gateway.datagrams_to_send(now), self._gateway.keepalives_to_send(now))
        self._commander.set_cookie_gate(self._gateway.cookie_gate(now))
        while (event := self._gateway.next_event()) is not None:
            self._report(event.level, event.name, str(event), event.fields)
        if self._gateway.wants_traffic and not self._looking:
            self._looking = True
            delay = max(_FIRST_PACKET_INTERVAL, _FIRST_PACKET_SHARE * len(self._gateway.awaiting_packets()))
            asyncio.get_running_loop().call_later(delay, self._look_for_traffic)
        self._arm()

    def _report(self, level: str, name: str, text: str, fields: dict[str, Any]) -> None:
        limit = self._event_limits.setdefault(name, RateLimit(_LOG_RATE, _LOG_BURST))
        if admitted := limit.admit(time.monotonic()):
            getattr(_log, level)(text, name=name, **fields, **admitted.fields)

    def _arm(self) -> None:
        deadline = self._gateway.get_timer()
        if deadline == self._timer_at:
            return
        if self._timer is not None:
            self._timer.cancel()
        self._timer, self._timer_at = None, deadline
        if deadline is not None:
            delay = max(deadline - time.monotonic(), 0.0) + _TIMER_RESOLUTION
            self._timer = asyncio.get_running_loop().call_later(delay, self._on_timer)

    # -- observation ---------------------------------------------------------------------------------------

    def _answer(self, request: dict[str, Any]) -> Any:
        if "reload" in request:
            return self.reload()
        if "redirect" in request:
            return self._redirect(request)
        section = request.get("show")
        if section not in SECTIONS:
            raise MisuseError(f"there is no section {section!r} to show; choose one of {', '.join(SECTIONS)}")
        status = self._gateway.status(time.monotonic())
        self._commander.add_counters(status)
        if section == "counters":
            return {
                "dataplane": self._dataplane.counters(),
                "kernel": self._dataplane.kernel_drops(),
                "control": {**self._commander.counters, **self._netlink.counters},
                "ike": self._commander.with_cookie_gate(status["ike"]),
                "nhrp": {name: tunnel["counters"] for name, tunnel in status["nhrp"].items()},
            }
        if section == "summary":
            return {
                **status["summary"],
                "version": dsvpn.__version__,
                "pid": os.getpid(),
                "uptime": round(time.monotonic() - self._started, 1),
                "driver": "workers" if self._uses_workers else "uvloop",
                "worker_threads": self._dataplane.worker_threads,
                "worker_packets": self._dataplane.worker_packets,
                "aead": self._dataplane.aead_backend,
                "build": dsvpn_native.BUILD_PROFILE,
                "offloads": self._dataplane.offloads(),
            }
        if section == "certificates":
            return certificates(self._gateway.config.materials, time.time())
        return status[section]


def _reason(error: OSError) -> str:
    return error.strerror or str(error)
