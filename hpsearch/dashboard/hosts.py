"""Host names and addresses under which the dashboard is requested, in one form."""

from __future__ import annotations

import ipaddress
import re

_HOST = re.compile(r"(\[(?P<v6>[^\[\]]+)\]|(?P<name>[^\[\]:/@,\s]+))(:[0-9]{1,5})?")


def host_of(netloc: str) -> str | None:
    """Return the host of HOST[:PORT] in the form of `canonical_host`; None if the text has another form."""
    found = _HOST.fullmatch(netloc)
    if found is None:
        return None
    host = canonical_host(found["v6"] or found["name"])
    return host if found["v6"] is None or _address_of(host) is not None else None


def canonical_host(host: str) -> str:
    """Normalise a host: a name in lower case without a final dot, or an address in its shortest form.

    Zones and IPv4 mappings are removed from addresses.
    """
    return str(_address_of(host) or host.lower().removesuffix("."))


def is_loopback(host: str) -> bool:
    """Whether only this machine can be reached by this name or address."""
    address = _address_of(host)
    return host == "localhost" if address is None else address.is_loopback


def _address_of(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        address = ipaddress.ip_address(host.strip("[]").partition("%")[0])
    except ValueError:
        return None
    return getattr(address, "ipv4_mapped", None) or address
