"""The server of the page."""

import socket
from ipaddress import ip_address
from typing import Final

import uvicorn

from search.index import Index
from search.page.app import make_app
from utils.errors import UserError

LOCAL: Final = "localhost"


def serve_page(index: Index, host: str, port: int) -> None:
    """Serves the page of an index until a signal ends it.

    Raises:
        UserError: the index is empty, its model cannot be loaded, or the address cannot be used.
    """
    encoder = index.encoder()
    listening = listen(host, port)
    print(f"model   {encoder}\nindex   {len(index):,} images", flush=True)
    print(f"page    http://{shown(host)}:{listening.getsockname()[1]}/ (Ctrl-C ends it)", flush=True)
    if not is_loopback(host):
        print(f"note    everybody who reaches {host} sees all images of the index; there is no password", flush=True)
    with listening:
        server_of(index, host).run(sockets=[listening])


def server_of(index: Index, host: str) -> uvicorn.Server:
    """Returns the server of the page for an address. A page on this machine answers only to names of this machine."""
    hosts = [shown(host), "127.0.0.1", "[::1]", LOCAL] if is_loopback(host) else ["*"]
    return uvicorn.Server(uvicorn.Config(make_app(index, hosts), log_level="warning", server_header=False))


def shown(host: str) -> str:
    """Returns a host as addresses of pages have it."""
    return f"[{host}]" if ":" in host else host


def listen(host: str, port: int) -> socket.socket:
    """Returns a socket that listens on an address.

    Raises:
        UserError: the address is not one of this machine, or its port is in use.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family)
    except (OSError, OverflowError) as error:
        raise UserError(
            f"{host}:{port} cannot be listened on ({getattr(error, 'strerror', None) or error}); choose another --port "
            "(0: any that is free)"
        ) from error


def is_loopback(host: str) -> bool:
    """Returns whether only this machine reaches an address."""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == LOCAL
