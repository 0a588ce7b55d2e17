"""The process that an emulator runs in.

`python -m tests.emulator_process ministack|moto PORT DIRECTORY`.

It ends with its parent, however that ends, and removes DIRECTORY, which the parent made for it
alone: its standard input is a pipe whose other end only the parent holds.
"""

import os
import shutil
import signal
import sys
import threading
import time


def _end_with_parent(directory: str) -> None:
    """Waits for the pipe to close, then asks this process to stop, and after 10 s ends it."""
    # Not through sys.stdin: its buffer's lock would be held when the interpreter shuts down.
    while os.read(0, 4096):
        pass
    # A parent that was killed could not remove what the emulator has on disk.
    shutil.rmtree(directory, ignore_errors=True)
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(10)
    os._exit(1)


def _parse_yaml_in_c() -> None:
    """Has emulators read templates by libyaml, in a sixth of the time of PyYAML's own parser."""
    import yaml  # noqa: PLC0415 - not before the thread below runs

    setattr(yaml, "SafeLoader", yaml.CSafeLoader)  # noqa: B010 - to mypy it is a type
    for module in (yaml, yaml.loader):  # where it is used, and where constructors are added to it
        setattr(module, "Loader", yaml.CLoader)  # noqa: B010


def _run_ministack(port: int) -> None:
    # they read the environment when they are imported
    from ministack.app import app  # noqa: PLC0415

    from deploy.local.gateway import serve  # noqa: PLC0415

    serve(app, port)


def _run_moto(port: int) -> None:
    # moto takes a second to import, and ministack does not need it
    from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app  # noqa: PLC0415
    from werkzeug.serving import make_server  # noqa: PLC0415

    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    # Threaded, moto loses concurrent conditional updates.
    app = DomainDispatcherApplication(create_backend_app)
    make_server("127.0.0.1", port, app, threaded=False).serve_forever()


if __name__ == "__main__":
    emulator, number, own_directory = sys.argv[1:]
    sys.argv[1:] = []
    threading.Thread(target=_end_with_parent, args=(own_directory,), daemon=True).start()
    _parse_yaml_in_c()
    if emulator == "ministack":
        _run_ministack(int(number))
    else:
        _run_moto(int(number))
