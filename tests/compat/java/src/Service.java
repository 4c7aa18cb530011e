import com.fasterxml.jackson.databind.JsonNode;
import com.fasterxml.jackson.databind.ObjectMapper;
import com.sun.net.httpserver.HttpExchange;
import com.sun.net.httpserver.HttpServer;
import java.io.IOException;
import java.net.InetAddress;
import java.net.InetSocketAddress;
import java.net.URLDecoder;
import java.nio.charset.StandardCharsets;
import java.sql.Connection;
import java.sql.DriverManager;
import java.util.HashMap;
import java.util.Map;
import java.util.concurrent.Executors;
import pub.dtm.client.barrier.BranchBarrier;
import pub.dtm.client.exception.FailureException;

/**
 * The branches of the transactions: a bank on MariaDB behind the barrier of dtmcli.
 *
 * <p>Environment: BANK_DB_PORT, BANK_DB_USER. Prints one line of JSON with its address when it is ready.
 */
public final class Service {
    private static final ObjectMapper JSON = new ObjectMapper();

    private Service() {}

    interface Change {
        void make(Connection c, long user, long amount) throws Exception;
    }

    public static void main(String[] args) throws Exception {
        HttpServer server = HttpServer.create(new InetSocketAddress(InetAddress.getLoopbackAddress(), 0), 0);
        server.setExecutor(Executors.newCachedThreadPool());
        branch(server, "/out", (c, user, amount) -> Bank.move(c, user, -amount));
        branch(server, "/out-compensate", Bank::undo);
        branch(server, "/in", Bank::move);
        branch(server, "/in-compensate", (c, user, amount) -> Bank.undo(c, user, -amount));
        branch(server, "/out-try", (c, user, amount) -> Bank.reserve(c, user, -amount));
        branch(server, "/out-confirm", (c, user, amount) -> Bank.settle(c, user, -amount));
        branch(server, "/out-cancel", (c, user, amount) -> Bank.release(c, user, -amount));
        branch(server, "/in-try", Bank::reserve);
        branch(server, "/in-confirm", Bank::settle);
        branch(server, "/in-cancel", Bank::release);
        server.start();
        System.out.println("{\"address\":\"127.0.0.1:" + server.getAddress().getPort() + "\"}");
    }

    /** Serves change at path, behind the barrier. */
    private static void branch(HttpServer server, String path, Change change) {
        server.createContext(path, exchange -> {
            try (Connection c = connect()) {
                JsonNode order = JSON.readTree(exchange.getRequestBody());
                new BranchBarrier(parameters(exchange)).call(c,
                        barrier -> change.make(c, order.get("user").asLong(), order.get("amount").asLong()));
                answer(exchange, 200, "{\"dtm_result\":\"SUCCESS\"}");
            } catch (FailureException e) {
                answer(exchange, 409, "{\"dtm_result\":\"FAILURE\"}");
            } catch (Exception e) {
                e.printStackTrace();
                answer(exchange, 500, "{\"message\":\"it did not work\"}");
            }
        });
    }

    private static Connection connect() throws Exception {
        return DriverManager.getConnection("jdbc:mariadb://127.0.0.1:" + System.getenv("BANK_DB_PORT") + "/dtm_busi",
                System.getenv("BANK_DB_USER"), "");
    }

    /** The query in the form that a servlet has it in. */
    private static Map<String, String[]> parameters(HttpExchange exchange) {
        Map<String, String[]> all = new HashMap<>();
        for (String pair : exchange.getRequestURI().getRawQuery().split("&")) {
            String[] kv = pair.split("=", 2);
            all.put(kv[0], new String[] {URLDecoder.decode(kv[1], StandardCharsets.UTF_8)});
        }
        return all;
    }

    private static void answer(HttpExchange exchange, int status, String body) throws IOException {
        byte[] bytes = body.getBytes(StandardCharsets.UTF_8);
        exchange.getResponseHeaders().set("Content-Type", "application/json");
        exchange.sendResponseHeaders(status, bytes.length);
        exchange.getResponseBody().write(bytes);
        exchange.close();
    }
}
