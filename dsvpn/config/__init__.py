"""The configuration file: TOML in, checked values out.

`model.py` names every key with its meaning and default, `load.py` reads a file and turns whatever is wrong with it
into one `ConfigurationError` that names the file, the key, the reason and what to write instead.
"""

from __future__ import annotations

from dsvpn.config.load import load_config
from dsvpn.config.model import AuthConfig, Config, GatewayConfig, IpsecConfig, NhrpSection, TunnelConfig

__all__ = ["AuthConfig", "Config", "GatewayConfig", "IpsecConfig", "NhrpSection", "TunnelConfig", "load_config"]
