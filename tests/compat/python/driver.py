"""Begins one transaction with dtmcli: driver.py SCENARIO, the rest by the environment.

Environment: DTM_URL, SERVICE_URL, FROM, TO, AMOUNT, BANK_DB_PORT, BANK_DB_USER. Prints "gid: ..." as soon as it has one,
and "error: ..." if dtmcli said that the transaction did not come to be.
"""

import contextlib
import os
import sys

from dtmcli import msg, saga, tcc, utils

import bank

SERVICE = os.environ["SERVICE_URL"]
OUT = {"user": int(os.environ["FROM"]), "amount": int(os.environ["AMOUNT"])}
IN = {"user": int(os.environ["TO"]), "amount": int(os.environ["AMOUNT"])}


def transfer(gid):
    s = saga.Saga(bank.DTM, gid)
    s.add(OUT, SERVICE + "/out", SERVICE + "/out-compensate")
    return s.add(IN, SERVICE + "/in", SERVICE + "/in-compensate")


def run_saga(gid):
    transfer(gid).submit()


def run_saga_waited(gid):
    s = transfer(gid)
    s.trans_base.wait_result = True
    s.submit()


def ends_well(gid, callback):
    if tcc.tcc_global_transaction(bank.DTM, gid, callback) != gid:
        raise Exception("aborted")


def run_tcc(gid):
    def branches(t):
        t.call_branch(OUT, SERVICE + "/out-try", SERVICE + "/out-confirm", SERVICE + "/out-cancel")
        t.call_branch(IN, SERVICE + "/in-try", SERVICE + "/in-confirm", SERVICE + "/in-cancel")

    ends_well(gid, branches)


def run_tcc_nested(gid):
    def branches(t):
        t.call_branch(OUT, SERVICE + "/out-try", SERVICE + "/out-confirm", SERVICE + "/out-cancel")
        nested = SERVICE + "/nested-try?here=" + SERVICE
        t.call_branch(IN, nested, SERVICE + "/nested-end", SERVICE + "/nested-end")

    ends_well(gid, branches)


def message(gid):
    m = msg.Msg(bank.DTM, gid)
    m.trans_base.timeout_to_fail = 1
    return m.add(IN, SERVICE + "/in")


def take_out(cursor):
    bank.move(cursor, OUT["user"], -OUT["amount"])


def run_msg(gid):
    with bank.cursor() as cursor:
        message(gid).do_and_submit_db(SERVICE + "/query-prepared", cursor, take_out)


def run_msg_plain(gid):
    msg.Msg(bank.DTM, gid).add(OUT, SERVICE + "/out").add(IN, SERVICE + "/in").set_wait_result().submit()


def run_msg_dies_committed(gid):
    """The program ends when the money is out, before the message is submitted."""

    def business(barrier):
        with bank.cursor() as cursor:
            barrier.call(cursor, take_out)
        os._exit(9)

    message(gid).do_and_submit(SERVICE + "/query-prepared", business)


def run_msg_dies_uncommitted(gid):
    """The program ends with its own transaction open."""

    def take_out_and_die(cursor):
        take_out(cursor)
        os._exit(9)

    with bank.cursor() as cursor:
        message(gid).do_and_submit_db(SERVICE + "/query-prepared", cursor, take_out_and_die)


if __name__ == "__main__":
    scenario = globals()["run_" + sys.argv[1].replace("-", "_")]
    gid = utils.gen_gid(bank.DTM)
    print("gid:", gid, flush=True)
    try:
        with contextlib.redirect_stdout(sys.stderr):  # dtmcli prints to standard output
            scenario(gid)
    except Exception as error:
        print("error:", repr(error), flush=True)
