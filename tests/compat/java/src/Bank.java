import java.sql.Connection;
import java.sql.PreparedStatement;
import java.sql.SQLException;
import pub.dtm.client.exception.FailureException;

/** Accounts in MariaDB. All changes are made on the connection that the barrier of dtmcli works on. */
final class Bank {
    private static final String USER = " where user_id = ?";

    private Bank() {}

    static void move(Connection c, long user, long amount) throws Exception {
        orRefuse(user, update(c, "update user_account set balance = balance + ?" + USER + " and balance + ? >= 0", amount, user, amount));
    }

    static void undo(Connection c, long user, long amount) throws Exception {
        update(c, "update user_account set balance = balance + ?" + USER, amount, user);
    }

    static void reserve(Connection c, long user, long amount) throws Exception {
        orRefuse(user, update(c, "update user_account set trading_balance = trading_balance + ?" + USER
                + " and balance + trading_balance + ? >= 0", amount, user, amount));
    }

    static void settle(Connection c, long user, long amount) throws Exception {
        update(c, "update user_account set balance = balance + ?, trading_balance = trading_balance - ?" + USER, amount, amount, user);
    }

    static void release(Connection c, long user, long amount) throws Exception {
        update(c, "update user_account set trading_balance = trading_balance - ?" + USER, amount, user);
    }

    private static int update(Connection c, String sql, long... values) throws SQLException {
        try (PreparedStatement s = c.prepareStatement(sql)) {
            for (int i = 0; i < values.length; i++) {
                s.setLong(i + 1, values[i]);
            }
            return s.executeUpdate();
        }
    }

    private static void orRefuse(long user, int rows) throws FailureException {
        if (rows != 1) {
            throw new FailureException("account " + user + " cannot take it");
        }
    }
}
