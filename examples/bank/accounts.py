#!/usr/bin/env python3
"""The accounts of the bank: withdrawals over HTTP, on the Python standard library alone.

It knows nothing of transactions. Balance and entry are one line of an append-only file, synced before the
answer; a request with an Idempotency-Key is answered from that file for ever. It behaves as `bank --as accounts`
does; the test of this folder runs the same histories against both. Start at Book.
"""

import argparse
import hashlib
import json
import os
import re
import signal
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote

AMOUNT_MAX = 2**53 - 1  # the largest integer that all three languages of the bank hold exactly
BODY_BYTES_MAX = 64 << 10
KEY_BYTES_MAX = 255
DRAIN_SECONDS_MAX = 10


def compact(value):
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False)


def refusal(text):
    return {"error": text}


class Ledger:
    """A file of lines that only grows. Lines submitted while a sync runs share the next one."""

    def __init__(self, path):
        self.lines, whole = self._read(path)
        self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        # A torn last line is what a crash leaves of an append that nobody was told about.
        os.ftruncate(self._fd, whole)
        directory = os.open(os.path.dirname(os.path.abspath(path)), os.O_RDONLY)
        os.fsync(directory)
        os.close(directory)
        self._changed = threading.Condition()  # guards the fields below
        self._pending = []
        self.submitted = 0
        self._synced = 0
        self._syncing = False

    @staticmethod
    def _read(path):
        if not os.path.exists(path):
            return [], 0
        with open(path, "rb") as f:
            data = f.read()
        lines, whole = [], 0
        while whole < len(data):
            end = data.find(b"\n", whole)
            try:
                entry = json.loads(data[whole:end]) if end >= 0 else None
            except ValueError:
                entry = None
            if entry is None:
                if 0 <= end < len(data) - 1:
                    n = len(lines) + 1
                    raise SystemExit(f"bank: open the ledger {path}: line {n} is not JSON and not the last: restore the file from a copy")
                break
            lines.append(entry)
            whole = end + 1
        return lines, whole

    def submit(self, line):
        """Queues one line, in the order of the calls."""
        with self._changed:
            self._pending.append(line)
            self.submitted += 1

    def wait(self, n):
        """Returns when line n and all before it are on disk. The first to wait writes and syncs for everybody
        who has submitted by then."""
        while True:
            with self._changed:
                if self._synced >= n:
                    return
                if self._syncing:
                    self._changed.wait()
                    continue
                lines, self._pending, up_to = self._pending, [], self.submitted
                self._syncing = True
            self._write(("\n".join(lines) + "\n").encode())
            with self._changed:
                self._synced, self._syncing = up_to, False
                self._changed.notify_all()

    def _write(self, data):
        # A ledger that cannot be written ends the process: whoever starts it again reads the file, and nobody
        # gets an answer that is not on disk.
        try:
            while data:
                data = data[os.write(self._fd, data):]
            os.fsync(self._fd)
        except OSError as err:
            print(f"bank: append to the ledger: {err}", file=sys.stderr, flush=True)
            os._exit(1)


class Book:
    """The accounts as the fold of the ledger's entries. All methods are safe for many threads."""

    def __init__(self, path, openings):
        self._ledger = Ledger(path)
        self._lock = threading.Lock()  # guards the fields below
        self._balances = {}
        self._closed = set()
        self._changes = {}
        self._undone = set()
        self._answered = {}
        self._entries = []
        for entry in self._ledger.lines:
            self._fold(entry)
        for account, amount in openings:
            if account not in self._balances:
                opened = {"kind": "opened", "account": account, "balance": amount or 0}
                self._record(opened if amount is not None else {**opened, "closed": True})
        self._ledger.wait(self._ledger.submitted)

    def _fold(self, e):
        """The only place where state changes, for new entries and for those read after a restart."""
        if e["kind"] in ("opened", "withdrawal", "undone"):
            self._balances[e["account"]] = e["balance"]
        if e["kind"] == "opened" and e.get("closed"):
            self._closed.add(e["account"])
        if e["kind"] == "withdrawal":
            self._changes[e["id"]] = e
        if e["kind"] == "undone":
            self._undone.add(e["id"])
        if e.get("key"):
            self._answered[e["key"]] = e
        self._entries.append(e)

    def _record(self, e):
        self._fold(e)
        self._ledger.submit(compact(e))

    def once(self, key, fingerprint, decide):
        """Answers from the record if the key has been seen, else by decide; returns when it is durable."""
        with self._lock:
            e = self._answered.get(key)
            if e is None:
                e = decide()
                if key:
                    status, answer = e.pop("status"), e.pop("answer")
                    e.update(key=key, print=fingerprint, status=status, answer=answer)
                if key or e["kind"] != "answered":
                    self._record(e)
            elif e["print"] != fingerprint:
                e = {"status": 422, "answer": refusal("the idempotency key was used for another request")}
            n = self._ledger.submitted
        self._ledger.wait(n)
        return e["status"], e["answer"]

    def withdraw(self, account, amount, transfer):
        balance = self._balances.get(account)
        e = {"kind": "answered", "account": account, "amount": amount}
        if transfer:
            e["transfer"] = transfer
        e.update(balance=balance or 0, status=409)
        if balance is None:
            e.update(status=404, answer=refusal("no account " + account))
        elif account in self._closed:
            e["answer"] = refusal("account closed")
        elif balance < amount:
            e["answer"] = refusal("insufficient funds")
        else:
            change, after = f"w-{len(self._changes) + 1}", balance - amount
            e.update(kind="withdrawal", id=change, balance=after, status=201, answer={"id": change, "balance": after})
        return e

    def undo(self, account, change):
        """Takes a withdrawal back. It works on closed accounts too: whoever undoes has the right to."""
        c = self._changes.get(change)
        balance = self._balances.get(account, 0)
        if c is None or c["account"] != account:
            return {"kind": "answered", "id": change, "account": account, "balance": balance, "status": 404,
                    "answer": refusal(f"no withdrawal {change} of {account}")}
        e = {"kind": "answered", "id": change, "account": account, "amount": c["amount"]}
        if c.get("transfer"):
            e["transfer"] = c["transfer"]
        if change not in self._undone:
            e["kind"], balance = "undone", balance + c["amount"]
        e.update(balance=balance, status=200, answer={"id": change, "balance": balance})
        return e

    def read(self, view):
        """Shows what is durable: nobody sees a balance that a crash could take back."""
        with self._lock:
            status, answer = view()
            text, n = compact(answer), self._ledger.submitted
        self._ledger.wait(n)
        return status, text

    def account(self, account):
        if account not in self._balances:
            return 404, refusal("no account " + account)
        answer = {"id": account, "balance": self._balances[account]}
        if account in self._closed:
            answer["closed"] = True
        return 200, answer

    def balances(self):
        return 200, dict(sorted(self._balances.items()))

    def entries(self, transfer):
        return 200, {"entries": [e for e in self._entries if not transfer or e.get("transfer") == transfer]}


class Refused(Exception):
    """A request that is answered before it reaches the book."""

    def __init__(self, status, text):
        super().__init__(text)
        self.status = status


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = -1  # head and body leave in one segment
    timeout = None

    def do_GET(self):
        self._serve(self._get)

    def do_POST(self):
        self._serve(self._post)

    def do_DELETE(self):
        self._serve(self._delete)

    def do_PUT(self):
        self._serve(self._unknown)

    do_PATCH = do_PUT

    def _serve(self, method):
        with self.server.busy:
            try:
                body = self._body()
                path = self.path.split("?")[0]
                status, text = method(path, [unquote(s) for s in path.split("/")[1:]], body)
            except Refused as refused:
                status, text = refused.status, compact(refusal(str(refused)))
            data = text.encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            if self.close_connection:
                self.send_header("Connection", "close")
            self.end_headers()
            try:
                self.wfile.write(data)
                self.wfile.flush()
            except OSError:
                self.close_connection = True  # the entry is durable whether the client hears of it or not

    def _get(self, path, parts, _):
        book = self.server.book
        if path == "/healthz":
            return 200, compact({"ok": True})
        if path == "/balances":
            return book.read(book.balances)
        if path == "/entries":
            transfer = parse_qs(self.path.partition("?")[2]).get("transfer", [""])[0]
            return book.read(lambda: book.entries(transfer))
        if len(parts) == 2 and parts[0] == "accounts" and parts[1]:
            return book.read(lambda: book.account(parts[1]))
        return self._unknown(path, parts, _)

    def _post(self, path, parts, body):
        if len(parts) != 3 or parts[0] != "accounts" or not parts[1] or parts[2] != "withdrawals":
            return self._unknown(path, parts, body)
        amount, transfer = parse_change(body)
        book = self.server.book
        return self._once(path, parts, body, lambda: book.withdraw(parts[1], amount, transfer))

    def _delete(self, path, parts, body):
        if len(parts) != 4 or parts[0] != "accounts" or not parts[1] or parts[2] != "withdrawals" or not parts[3]:
            return self._unknown(path, parts, body)
        book = self.server.book
        return self._once(path, parts, body, lambda: book.undo(parts[1], parts[3]))

    def _once(self, path, parts, body, decide):
        key = self.headers.get("Idempotency-Key", "").strip('"')
        if len(key) > KEY_BYTES_MAX:
            raise Refused(400, "idempotency-key: want at most 255 bytes")
        fingerprint = hashlib.sha256(f"{self.command} {path}\n".encode() + body).hexdigest()
        status, answer = self.server.book.once(key, fingerprint, decide)
        # Held after the effect is durable: the answer may get lost on its way, the effect does not.
        time.sleep(self.server.delay + self._held(parts[1]))
        return status, compact(answer)

    def _held(self, account):
        """How long the answer waits so that somebody can break something meanwhile."""
        asked = self.headers.get("X-Bank-Hold-Ms", "")
        if asked.isascii() and asked.isdigit() and int(asked) > 0:
            return int(asked) / 1000
        return self.server.hold if self.command == "POST" and account == "slow" else 0

    def _unknown(self, path, _parts, _body):
        return 404, compact(refusal(f"no route {self.command} {unquote(path)}"))

    def _body(self):
        """The whole body. What is over the limit is read and dropped, so that the caller hears why."""
        body, size = b"", 0
        for length in self._lengths():
            while length:
                part = self.rfile.read(min(length, BODY_BYTES_MAX))
                if not part:
                    self._broken()
                length -= len(part)
                size += len(part)
                if size <= BODY_BYTES_MAX:
                    body += part
        if size > BODY_BYTES_MAX:
            raise Refused(413, "body: want at most 65536 bytes")
        return body

    def _lengths(self):
        """Yields how many bytes to read next; takes off the framing of a chunked body."""
        if "chunked" not in self.headers.get("Transfer-Encoding", "").lower():
            declared = self.headers.get("Content-Length", "0")
            if not (declared.isascii() and declared.isdigit()):
                self._broken()
            yield int(declared)
            return
        while True:
            head = self.rfile.readline(1024).split(b";")[0].strip()
            if not re.fullmatch(rb"[0-9A-Fa-f]{1,8}", head):
                self._broken()
            size = int(head, 16)
            if not size:
                break
            yield size
            if self.rfile.readline(3) != b"\r\n":
                self._broken()
        while self.rfile.readline(8192).strip():
            pass  # trailers

    def _broken(self):
        self.close_connection = True
        raise Refused(400, "body: broke off")

    def log_message(self, *_):
        pass


def parse_change(body):
    try:
        want = json.loads(body)
    except ValueError:
        want = None
    if not isinstance(want, dict) or not isinstance(want.get("transfer") or "", str):
        raise Refused(400, "body: want a JSON object with amount and transfer")
    amount = want.get("amount")
    if amount is not None and (isinstance(amount, bool) or not isinstance(amount, (int, float))):
        raise Refused(400, "body: want a JSON object with amount and transfer")
    if amount is None or not 1 <= amount <= AMOUNT_MAX or amount != int(amount):
        raise Refused(400, "amount: want an integer from 1 to 9007199254740991")
    return int(amount), want.get("transfer")


class Busy:
    """Counts the requests that are being served."""

    def __init__(self):
        self._changed = threading.Condition()
        self._n = 0

    def __enter__(self):
        with self._changed:
            self._n += 1

    def __exit__(self, *_):
        with self._changed:
            self._n -= 1
            self._changed.notify_all()

    def drained(self, seconds):
        with self._changed:
            return self._changed.wait_for(lambda: self._n == 0, seconds)


class Server(ThreadingHTTPServer):
    request_queue_size = 128
    daemon_threads = True


def duration(text):
    found = re.fullmatch(r"(\d+)(ms|s)", text)
    if not found:
        raise argparse.ArgumentTypeError(f"{text!r}: want a duration such as 250ms or 5s")
    return int(found[1]) / (1000 if found[2] == "ms" else 1)


def balances(text):
    openings = []
    for pair in filter(None, text.split(",")):
        found = re.fullmatch(r"([^=]+)=(closed|\d+)", pair)
        if not found or (found[2] != "closed" and int(found[2]) > AMOUNT_MAX):
            raise argparse.ArgumentTypeError(f"{text!r}: want account=amount or account=closed, found {pair!r}")
        openings.append((found[1], None if found[2] == "closed" else int(found[2])))
    return openings


def parse_config():
    flags = argparse.ArgumentParser(prog="accounts.py", description=__doc__.splitlines()[0])
    for name, kind, default, usage in (
        ("listen", str, "127.0.0.1:0", "address to listen on; port 0 picks one and prints it"),
        ("data", str, "", "file that keeps the entries"),
        ("balances", balances, "", "accounts at the start: alice=100,carol=closed"),
        ("delay", duration, "0s", "how long each answer to a change is delayed"),
        ("hold", duration, "5s", "how long the answer of the account named slow is held"),
    ):
        default = os.environ.get("BANK_" + name.upper()) or default
        flags.add_argument("--" + name, type=kind, default=default, help=usage)
    c = flags.parse_args()
    if not c.data:
        flags.error("--data is missing: name the file that keeps the entries of accounts")
    return c


def main():
    c = parse_config()
    host, _, port = c.listen.rpartition(":")
    server = Server((host, int(port)), Handler)
    server.book, server.busy, server.delay, server.hold = Book(c.data, c.balances), Busy(), c.delay, c.hold
    # shutdown waits for serve_forever, which runs on this very thread: hence another one.
    for s in (signal.SIGTERM, signal.SIGINT):
        signal.signal(s, lambda *_: threading.Thread(target=server.shutdown).start())
    address = "%s:%d" % server.server_address[:2]
    print(compact({"address": address, "service": "accounts"}), flush=True)
    server.serve_forever(poll_interval=0.05)
    server.server_close()
    if not server.busy.drained(DRAIN_SECONDS_MAX):
        sys.exit(f"bank: stop with requests unanswered after {DRAIN_SECONDS_MAX}s")


if __name__ == "__main__":
    main()
