"""A lax HTTP/1.1 server on Python's own: reads bodies the careless way and says which requests it saw."""
import http.server
import sys


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def answer(self):
        if "chunked" in (self.headers.get("Transfer-Encoding") or "").lower():
            while True:
                size = int(self.rfile.readline().split(b";")[0], 16)  # takes 0x5, +5, blanks and a bare LF
                self.rfile.read(size)
                if size == 0:
                    while self.rfile.readline().strip():
                        pass
                    break
                self.rfile.readline()
        elif self.headers.get("Content-Length"):
            self.rfile.read(int(self.headers["Content-Length"]))
        path = self.path.encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(path)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(path)

    do_GET = do_POST = do_PUT = do_HEAD = do_OPTIONS = answer

    def log_request(self, code="-", size="-"):
        print("saw", self.path, flush=True)

    def log_message(self, *args):
        pass


server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
print('{"address": "127.0.0.1:%d"}' % server.server_port, flush=True)
server.serve_forever()
