"""The page's server: for this machine alone unless told otherwise, and nothing outside is asked for anything."""
import contextlib
import errno
import os
import shutil
import signal
import socket
import sys
import tempfile
import threading
from collections.abc import Iterator

from utils.errors import InputError

# Gradio reads these when it is imported or when a page is built.
QUIET = {"GRADIO_ANALYTICS_ENABLED": "False", "GRADIO_RUN_HISTORY": "False", "GRADIO_MCP_SERVER": "False",
         "HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_OFFLINE": "1"}
# Whatever Gradio's page may name, a browser loads nothing from elsewhere.
POLICY = ("default-src 'self' data: blob: 'unsafe-inline' 'unsafe-eval'; frame-ancestors 'self'; form-action 'self'")
LONGEST_END = 3  # seconds that a prediction may still take when the server is told to end; it cannot be interrupted


@contextlib.contextmanager
def temporary_folder() -> Iterator[str]:
    """A folder for what Gradio and the page write, removed at the end of the context; SIGTERM exits with code 143."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    with tempfile.TemporaryDirectory(prefix="ris-fusion-page-", ignore_cleanup_errors=True) as folder:
        os.environ.update(QUIET, GRADIO_TEMP_DIR=folder)
        yield folder


def bind(host: str, port: int) -> socket.socket:
    """A socket at an address; port 0 is any that is free.

    Raises:
        InputError: another program has it, or there is no such address.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        found = socket.socket(family, kind, protocol)
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        found.bind(address)
        found.listen()  # a second server of ours is refused from here on, not only once the model is loaded
        return found
    except OSError as error:
        if error.errno in (errno.EADDRINUSE, errno.EACCES):
            raise InputError(f"{host}:{port} cannot be used ({error.strerror}); name another port, or 0 for any that "
                             "is free", "port") from error
        raise InputError(f"{host!r} is no address of this machine ({error.strerror})", "host") from error


def address(listening: socket.socket) -> str:
    """The URL of the page at a socket of `bind`."""
    host, port = listening.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def serve(blocks, listening: socket.socket, folder: str, max_bytes: int, **looks) -> None:
    """Serve a page of `layout.build_page` until SIGINT or SIGTERM, which end in KeyboardInterrupt and SystemExit.

    Args:
        folder: of `temporary_folder`.
        max_bytes: of an uploaded file.
        looks: theme and css_paths of Gradio.
    """
    import gradio
    import uvicorn
    from fastapi import FastAPI

    app = FastAPI(openapi_url=None)

    @app.middleware("http")
    async def same_origin_only(request, call_next):
        response = await call_next(request)
        response.headers["Content-Security-Policy"] = POLICY
        return response

    gradio.mount_gradio_app(app, blocks, "/", footer_links=[], max_file_size=max_bytes, ssr_mode=False, pwa=False,
                            mcp_server=False, enable_monitoring=False, show_error=True, **looks)

    class Server(uvicorn.Server):
        def handle_exit(self, sig, frame):
            super().handle_exit(sig, frame)
            last = threading.Timer(LONGEST_END, end_at_once, (folder, 128 + sig))
            last.daemon = True
            last.start()

    Server(uvicorn.Config(app, log_level="critical", timeout_graceful_shutdown=1)).run([listening])


def end_at_once(folder: str, code: int) -> None:
    """End this program though a thread is computing, for which Python would wait."""
    shutil.rmtree(folder, ignore_errors=True)
    sys.stdout.flush()
    os._exit(code)
