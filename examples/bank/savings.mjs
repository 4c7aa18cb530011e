#!/usr/bin/env node
// The savings of the bank: deposits over HTTP, on Node's standard library alone.
//
// It knows nothing of transactions. Balance and entry are one line of an append-only file, synced before the
// answer; a request with an Idempotency-Key is answered from that file for ever. It behaves as `bank --as savings`
// does; the test of this folder runs the same histories against both. Start at Book.

import { createHash } from "node:crypto";
import fs from "node:fs";
import http from "node:http";
import path from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { parseArgs } from "node:util";

const amountMax = Number.MAX_SAFE_INTEGER; // the largest integer that all three languages of the bank hold exactly
const bodyBytesMax = 64 << 10;
const keyBytesMax = 255;
const drainMillisMax = 10_000;

const refusal = (error) => ({ error });

// Ledger is a file of lines that only grows. Lines submitted while a sync runs share the next one.
class Ledger {
  #file;
  #pending = [];
  #next = null; // resolves when all that is pending now is on disk
  #running = Promise.resolve();

  constructor(name) {
    const { lines, whole } = readLines(name);
    this.lines = lines;
    this.#file = fs.openSync(name, fs.constants.O_WRONLY | fs.constants.O_CREAT | fs.constants.O_APPEND, 0o600);
    // A torn last line is what a crash leaves of an append that nobody was told about.
    fs.ftruncateSync(this.#file, whole);
    const dir = fs.openSync(path.dirname(path.resolve(name)), "r");
    fs.fsyncSync(dir);
    fs.closeSync(dir);
  }

  // submit queues one line, in the order of the calls.
  submit(line) {
    this.#pending.push(line);
    if (this.#next === null) {
      this.#next = this.#running.then(() => this.#write());
      this.#running = this.#next;
    }
  }

  // wait resolves when all lines submitted so far are on disk.
  wait() {
    return this.#running;
  }

  // A ledger that cannot be written ends the process: whoever starts it again reads the file, and nobody gets an
  // answer that is not on disk.
  async #write() {
    let data = Buffer.from(this.#pending.join("\n") + "\n");
    this.#pending = [];
    this.#next = null;
    try {
      while (data.length > 0) {
        const n = await new Promise((done, fail) => fs.write(this.#file, data, (err, n) => (err ? fail(err) : done(n))));
        data = data.subarray(n);
      }
      await new Promise((done, fail) => fs.fsync(this.#file, (err) => (err ? fail(err) : done())));
    } catch (err) {
      console.error(`bank: append to the ledger: ${err.message}`);
      process.exit(1);
    }
  }
}

function readLines(name) {
  const data = fs.existsSync(name) ? fs.readFileSync(name) : Buffer.alloc(0);
  const lines = [];
  let whole = 0;
  while (whole < data.length) {
    const end = data.indexOf("\n", whole);
    let entry = null;
    try {
      if (end >= 0) entry = JSON.parse(data.subarray(whole, end).toString());
    } catch {
      // judged below
    }
    if (entry === null) {
      if (end >= 0 && end < data.length - 1) {
        throw new Error(`open the ledger ${name}: line ${lines.length + 1} is not JSON and not the last: restore the file from a copy`);
      }
      break;
    }
    lines.push(entry);
    whole = end + 1;
  }
  return { lines, whole };
}

// Book is the accounts as the fold of the ledger's entries.
class Book {
  #ledger;
  #balances = new Map();
  #closed = new Set();
  #changes = new Map();
  #undone = new Set();
  #answered = new Map();
  #entries = [];

  constructor(name, openings) {
    this.#ledger = new Ledger(name);
    for (const entry of this.#ledger.lines) this.#fold(entry);
    for (const [account, amount] of openings) {
      if (this.#balances.has(account)) continue;
      const opened = { kind: "opened", account, balance: amount ?? 0 };
      this.#record(amount === null ? { ...opened, closed: true } : opened);
    }
  }

  durable() {
    return this.#ledger.wait();
  }

  // The only place where state changes, for new entries and for those read after a restart.
  #fold(e) {
    if (["opened", "deposit", "undone"].includes(e.kind)) this.#balances.set(e.account, e.balance);
    if (e.kind === "opened" && e.closed) this.#closed.add(e.account);
    if (e.kind === "deposit") this.#changes.set(e.id, e);
    if (e.kind === "undone") this.#undone.add(e.id);
    if (e.key) this.#answered.set(e.key, e);
    this.#entries.push(e);
  }

  #record(e) {
    this.#fold(e);
    this.#ledger.submit(JSON.stringify(e));
  }

  // once answers from the record if the key has been seen, else by decide; it resolves when that is durable.
  async once(key, print, decide) {
    let e = this.#answered.get(key);
    if (e === undefined) {
      const { status, answer, ...fact } = decide();
      e = key ? { ...fact, key, print, status, answer } : { ...fact, status, answer };
      if (key || e.kind !== "answered") this.#record(e);
    } else if (e.print !== print) {
      e = { status: 422, answer: refusal("the idempotency key was used for another request") };
    }
    await this.durable();
    return [e.status, e.answer];
  }

  deposit(account, amount, transfer) {
    const balance = this.#balances.get(account);
    const e = { kind: "answered", account, amount, ...(transfer && { transfer }), balance: balance ?? 0, status: 409 };
    if (balance === undefined) return { ...e, status: 404, answer: refusal(`no account ${account}`) };
    if (this.#closed.has(account)) return { ...e, answer: refusal("account closed") };
    const after = balance + amount;
    if (after > amountMax) return { ...e, answer: refusal("balance too large") };
    const id = `d-${this.#changes.size + 1}`;
    return { ...e, kind: "deposit", id, balance: after, status: 201, answer: { id, balance: after } };
  }

  // undo takes a deposit back. It works on closed accounts too, and never refuses for the balance: whoever undoes
  // has the right to.
  undo(account, id) {
    const c = this.#changes.get(id);
    let balance = this.#balances.get(account) ?? 0;
    if (c === undefined || c.account !== account) {
      return { kind: "answered", id, account, balance, status: 404, answer: refusal(`no deposit ${id} of ${account}`) };
    }
    let kind = "answered";
    if (!this.#undone.has(id)) {
      kind = "undone";
      balance -= c.amount;
    }
    const transfer = c.transfer && { transfer: c.transfer };
    return { kind, id, account, amount: c.amount, ...transfer, balance, status: 200, answer: { id, balance } };
  }

  account(account) {
    if (!this.#balances.has(account)) return [404, refusal(`no account ${account}`)];
    const closed = this.#closed.has(account) && { closed: true };
    return [200, { id: account, balance: this.#balances.get(account), ...closed }];
  }

  balances() {
    return [200, Object.fromEntries([...this.#balances].sort(([a], [b]) => (a < b ? -1 : 1)))];
  }

  entries(transfer) {
    return [200, { entries: this.#entries.filter((e) => !transfer || e.transfer === transfer) }];
  }
}

// Refused is a request that is answered before it reaches the book.
class Refused extends Error {
  constructor(status, text) {
    super(text);
    this.status = status;
  }
}

async function readBody(req) {
  const chunks = [];
  let size = 0;
  for await (const chunk of req) {
    size += chunk.length;
    if (size <= bodyBytesMax) chunks.push(chunk); // the rest is read and dropped, so that the caller hears why
  }
  if (size > bodyBytesMax) throw new Refused(413, "body: want at most 65536 bytes");
  return Buffer.concat(chunks);
}

function parseChange(body) {
  let want;
  try {
    want = JSON.parse(body.toString());
  } catch {
    want = null;
  }
  const object = want !== null && typeof want === "object" && !Array.isArray(want);
  if (!object || typeof (want.transfer ?? "") !== "string" || !["number", "undefined"].includes(typeof (want.amount ?? undefined))) {
    throw new Refused(400, "body: want a JSON object with amount and transfer");
  }
  if (!Number.isSafeInteger(want.amount) || want.amount < 1) {
    throw new Refused(400, "amount: want an integer from 1 to 9007199254740991");
  }
  return want;
}

// respond gives the status and the answer of one request. Answers to changes are held after the effect is
// durable: the answer may get lost on its way, the effect does not.
async function respond(book, c, req) {
  const body = await readBody(req);
  const [pathname, query] = req.url.split("?", 2);
  const parts = decode(pathname);
  const [collection, account, kind, id] = parts;
  const ofAccount = collection === "accounts" && account;
  const print = createHash("sha256").update(`${req.method} ${pathname}\n`).update(body).digest("hex");

  if (req.method === "POST" && ofAccount && kind === "deposits" && parts.length === 3) {
    const { amount, transfer } = parseChange(body);
    const answer = await book.once(keyOf(req), print, () => book.deposit(account, amount, transfer));
    await pause(c.delay + (holdOf(req) || (account === "slow" ? c.hold : 0)));
    return answer;
  }
  if (req.method === "DELETE" && ofAccount && kind === "deposits" && id && parts.length === 4) {
    const answer = await book.once(keyOf(req), print, () => book.undo(account, id));
    await pause(c.delay + holdOf(req));
    return answer;
  }
  if (req.method === "GET") {
    const answer = view(book, pathname, parts, new URLSearchParams(query));
    await book.durable(); // nobody sees a balance that a crash could take back
    if (answer) return answer;
  }
  return [404, refusal(`no route ${req.method} /${parts.join("/")}`)];
}

function view(book, pathname, parts, search) {
  if (pathname === "/healthz") return [200, { ok: true }];
  if (pathname === "/balances") return book.balances();
  if (pathname === "/entries") return book.entries(search.get("transfer"));
  if (parts[0] === "accounts" && parts[1] && parts.length === 2) return book.account(parts[1]);
  return null;
}

function decode(pathname) {
  try {
    return pathname.split("/").slice(1).map(decodeURIComponent);
  } catch {
    return pathname.split("/").slice(1);
  }
}

function keyOf(req) {
  const key = (req.headers["idempotency-key"] ?? "").replace(/^"+|"+$/g, "");
  if (key.length > keyBytesMax) throw new Refused(400, "idempotency-key: want at most 255 bytes");
  return key;
}

function holdOf(req) {
  const asked = req.headers["x-bank-hold-ms"] ?? "";
  return /^\d{1,7}$/.test(asked) ? Number(asked) : 0;
}

function pause(millis) {
  return millis > 0 ? sleep(millis) : undefined;
}

function duration(name, text) {
  const found = /^(\d+)(ms|s)$/.exec(text);
  if (!found) throw new Error(`--${name} "${text}": want a duration such as 250ms or 5s`);
  return Number(found[1]) * (found[2] === "s" ? 1000 : 1);
}

function balances(text) {
  return text.split(",").filter(Boolean).map((pair) => {
    const found = /^([^=]+)=(closed|\d+)$/.exec(pair);
    if (!found || Number(found[2]) > amountMax) {
      throw new Error(`--balances "${text}": want account=amount or account=closed, found "${pair}"`);
    }
    return [found[1], found[2] === "closed" ? null : Number(found[2])];
  });
}

function parseConfig() {
  const defaults = { listen: "127.0.0.1:0", data: "", balances: "", delay: "0s", hold: "5s" };
  const options = {};
  for (const [name, value] of Object.entries(defaults)) {
    options[name] = { type: "string", default: process.env[`BANK_${name.toUpperCase()}`] || value };
  }
  const { values } = parseArgs({ options });
  if (!values.data) throw new Error("--data is missing: name the file that keeps the entries of savings");
  return {
    ...values,
    balances: balances(values.balances),
    delay: duration("delay", values.delay),
    hold: duration("hold", values.hold),
  };
}

async function main() {
  const c = parseConfig();
  const book = new Book(c.data, c.balances);
  await book.durable();
  const server = http.createServer({ requestTimeout: 0 }, async (req, res) => {
    let status, answer;
    try {
      [status, answer] = await respond(book, c, req);
    } catch (err) {
      if (!(err instanceof Refused) && !req.destroyed) throw err;
      [status, answer] = [err.status ?? 400, refusal(err.message)];
    }
    const text = JSON.stringify(answer);
    res.writeHead(status, { "Content-Type": "application/json", "Content-Length": Buffer.byteLength(text) });
    res.end(text);
  });
  server.keepAliveTimeout = 0; // the caller decides when to close, so that no request meets a closing connection
  const [, host, port] = /^(.*):(\d+)$/.exec(c.listen) ?? [];
  if (port === undefined) throw new Error(`--listen "${c.listen}": want host:port`);
  server.listen({ host, port: Number(port), backlog: 128 }, () => {
    const address = `${server.address().address}:${server.address().port}`;
    console.log(JSON.stringify({ address, service: "savings" }));
  });
  for (const signal of ["SIGTERM", "SIGINT"]) process.on(signal, () => stop(server));
}

function stop(server) {
  server.close(() => process.exit(0));
  server.closeIdleConnections();
  // Connections that become idle while others are still served would keep close waiting.
  setInterval(() => server.closeIdleConnections(), 50);
  setTimeout(() => {
    console.error(`bank: stop with requests unanswered after ${drainMillisMax}ms`);
    process.exit(1);
  }, drainMillisMax);
}

main().catch((err) => {
  console.error(`bank: ${err.message}`);
  process.exit(1);
});
