"""The branches of the transactions: a bank on MariaDB behind the barrier of dtmcli.

Environment: DTM_URL, BANK_DB_PORT, BANK_DB_USER. Prints one line of JSON with its address when it is ready.
"""

import json
import os
import sys

from dtmcli import tcc, utils
from flask import Flask, request
from werkzeug.serving import make_server

import bank

app = Flask(__name__)


def branch(path, change):
    """Serves change(cursor, user, amount) at path, behind the barrier."""

    def handle():
        order = request.get_json()
        with bank.cursor() as cursor:
            bank.barrier_of(request.args).call(
                cursor, lambda c: change(c, order["user"], order["amount"])
            )
        return {"dtm_result": "SUCCESS"}

    app.add_url_rule(path, path, handle, methods=["POST"])


branch("/out", lambda c, user, amount: bank.move(c, user, -amount))
branch("/out-compensate", lambda c, user, amount: bank.undo(c, user, amount))
branch("/in", lambda c, user, amount: bank.move(c, user, amount))
branch("/in-compensate", lambda c, user, amount: bank.undo(c, user, -amount))

branch("/out-try", lambda c, user, amount: bank.reserve(c, user, -amount))
branch("/out-confirm", lambda c, user, amount: bank.settle(c, user, -amount))
branch("/out-cancel", lambda c, user, amount: bank.release(c, user, -amount))
branch("/in-try", lambda c, user, amount: bank.reserve(c, user, amount))
branch("/in-confirm", lambda c, user, amount: bank.settle(c, user, amount))
branch("/in-cancel", lambda c, user, amount: bank.release(c, user, amount))


@app.post("/nested-try")
def nested_try():
    """A try that is itself a caller: it adds a branch below its own."""
    order, here = request.get_json(), request.args.get("here")
    inner = tcc.tcc_from_req(bank.DTM, request.args["gid"], request.args["branch_id"])
    inner.call_branch(order, here + "/in-try", here + "/in-confirm", here + "/in-cancel")
    return {"dtm_result": "SUCCESS"}


@app.post("/nested-end")
def nested_end():
    return {"dtm_result": "SUCCESS"}


@app.get("/query-prepared")
def query_prepared():
    with bank.cursor() as cursor:
        bank.barrier_of(request.args).query_prepared(cursor)
    return {"dtm_result": "SUCCESS"}


@app.errorhandler(utils.DTMFailureError)
def refused(error):
    return {"dtm_result": "FAILURE", "message": str(error)}, 409


if __name__ == "__main__":
    ready, sys.stdout = sys.stdout, sys.stderr  # dtmcli prints to standard output
    server = make_server("127.0.0.1", 0, app, threaded=True)
    print(json.dumps({"address": "127.0.0.1:%d" % server.server_port}), file=ready, flush=True)
    server.serve_forever()
