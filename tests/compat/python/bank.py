"""Accounts in MariaDB, as the service and the driver use them."""

import os

import pymysql
from dtmcli import barrier, utils

DTM = os.environ["DTM_URL"]


def cursor():
    """A cursor on a connection of its own; both are closed by the with statement."""
    connection = pymysql.connect(
        host="127.0.0.1",
        port=int(os.environ["BANK_DB_PORT"]),
        user=os.environ["BANK_DB_USER"],
        database="dtm_busi",
    )
    return barrier.AutoCursor(connection.cursor())


def barrier_of(args):
    return barrier.BranchBarrier(args["trans_type"], args["gid"], args["branch_id"], args["op"])


def change(cursor, condition, sql, user, amount):
    """Changes one account, or refuses."""
    if cursor.execute(sql + " where user_id = %s and " + condition, (amount, user, amount)) != 1:
        raise utils.DTMFailureError("account %s cannot take %s" % (user, amount))


def move(cursor, user, amount):
    change(cursor, "balance + %s >= 0", "update user_account set balance = balance + %s", user, amount)


def undo(cursor, user, amount):
    cursor.execute("update user_account set balance = balance + %s where user_id = %s", (amount, user))


def reserve(cursor, user, amount):
    change(
        cursor,
        "balance + trading_balance + %s >= 0",
        "update user_account set trading_balance = trading_balance + %s",
        user,
        amount,
    )


def settle(cursor, user, amount):
    cursor.execute(
        "update user_account set balance = balance + %s, trading_balance = trading_balance - %s where user_id = %s",
        (amount, amount, user),
    )


def release(cursor, user, amount):
    cursor.execute(
        "update user_account set trading_balance = trading_balance - %s where user_id = %s", (amount, user)
    )
