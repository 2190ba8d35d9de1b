"""A link to a server of this machine, which can be cut."""

import socket
import threading
from contextlib import contextmanager, suppress

from workflows.cluster.local import free_ports


class Link:
    """A link to a server that can be cut: nobody answers any more, and who was talking is cut off."""

    def __init__(self, port):
        (self.port,) = free_ports(1)
        self._to, self._open, self._threads = port, [], []
        self.mend()

    def mend(self):
        self._server = socket.create_server(("127.0.0.1", self.port))
        self._thread = threading.Thread(target=self._accept, daemon=True)
        self._thread.start()

    def cut(self):
        self._server.shutdown(socket.SHUT_RDWR)
        self._server.close()
        self._thread.join()
        for each in self._open:
            end(each)
        for thread in self._threads:
            thread.join()
        for each in self._open:
            each.close()
        self._open.clear()
        self._threads.clear()

    def _accept(self):
        with suppress(OSError):
            while True:
                near = self._server.accept()[0]
                far = socket.create_connection(("127.0.0.1", self._to))
                self._open += [near, far]
                for ends in ((near, far), (far, near)):
                    self._threads.append(threading.Thread(target=pass_on, args=ends, daemon=True))
                    self._threads[-1].start()


def pass_on(a, b):
    with suppress(OSError):
        while data := a.recv(1 << 16):
            b.sendall(data)
    end(b)


def end(connection):
    with suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)


@contextmanager
def link_to(address):
    link = Link(int(address.rpartition(":")[2]))
    yield link
    link.cut()
