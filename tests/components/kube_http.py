"""The HTTP side of the stand-in for a Kubernetes API server: answers, errors, logs that are followed."""

import json
import threading
import time
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit


def serve(api):
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler(api))
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server


def found(content, path):
    return (200, content) if content else (404, status(404, "NotFound", f"{path} not found"))


def status(code, reason, message):
    kind = {"kind": "Status", "apiVersion": "v1", "status": "Failure"}
    return {**kind, "reason": reason, "message": message, "code": code}


def handler(api):
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True  # or each answer waits 40 ms for an acknowledgement

        def handle_any(self):
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            url = urlsplit(self.path)
            query = {name: values[0] for name, values in parse_qs(url.query).items()}
            api.calls.append((self.command, url.path))
            if api.outage > 0 and "trainjobs" in url.path:
                api.outage -= 1
                return self.send(503, status(503, "ServiceUnavailable", "the server is restarting"))
            if url.path.endswith("/log"):
                return self.log(api.pod(url.path.split("/")[-2]), query.get("follow") == "True")
            content = json.loads(body) if body else None
            return self.send(*api.answer(self.command, url.path, query, content))

        def send(self, code, content):
            data = json.dumps(content).encode()
            self.send_response(code)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log(self, pod, follow):
            """Chunked, until the container has ended."""
            if pod is None:
                return self.send(404, status(404, "NotFound", "pod not found"))
            self.send_response(200)
            self.send_header("Content-Type", "text/plain")
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            sent, lines = 0, pod.lines
            while True:
                ended = pod.code is not None or pod.lines is not lines or not follow or api.pod(pod.name) is None
                for line in lines[sent:]:
                    data = f"{line}\n".encode()
                    self.wfile.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")
                    self.wfile.flush()
                    sent += 1
                    if follow and api.drop_log_after and sent >= api.drop_log_after:
                        api.drop_log_after = 0
                        self.close_connection = True
                        self.connection.close()
                        return None
                if ended:
                    self.wfile.write(b"0\r\n\r\n")
                    return None
                time.sleep(0.02)

        def log_message(self, *args):
            pass

        def handle(self):
            with suppress(OSError, ValueError):  # a client that went away, or a connection that was cut on purpose
                super().handle()

        do_GET = do_POST = do_PATCH = do_DELETE = handle_any  # noqa: N815

    return Handler
