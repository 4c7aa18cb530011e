import java.util.Arrays;
import java.util.Map;
import pub.dtm.client.DtmClient;
import pub.dtm.client.saga.Saga;
import pub.dtm.client.tcc.Tcc;

/**
 * Begins one transaction with dtmcli; the argument is the scenario.
 *
 * <p>Environment: DTM_URL, SERVICE_URL, FROM, TO, AMOUNT. Prints "gid: ..." as soon as it has one, and "error: ..." if
 * dtmcli said that the transaction did not come to be.
 */
public final class Driver {
    private static final String SERVICE = System.getenv("SERVICE_URL");
    private static final Map<String, Long> OUT = order("FROM");
    private static final Map<String, Long> IN = order("TO");

    private Driver() {}

    public static void main(String[] args) {
        // DTM_URL is that of the interface; this client wants its host and port
        DtmClient client = new DtmClient(java.net.URI.create(System.getenv("DTM_URL")).getAuthority());
        try {
            switch (args[0]) {
                case "saga" -> submit(transfer(client.newSaga()));
                case "saga-waited" -> submit(transfer(client.newSaga()).enableWaitResult());
                case "saga-concurrent" -> submit(transfer(client.newSaga()).enableConcurrent());
                case "saga-ordered" -> submit(transfer(client.newSaga()).enableConcurrent().addBranchOrder(1, Arrays.asList(0)));
                case "tcc" -> client.tccGlobalTransaction(Driver::transfer);
                default -> throw new IllegalArgumentException("no scenario " + args[0]);
            }
        } catch (Exception e) {
            System.out.println("error: " + e);
        }
        System.exit(0); // okhttp keeps threads for a minute
    }

    private static Saga transfer(Saga saga) {
        return saga.add(SERVICE + "/out", SERVICE + "/out-compensate", OUT).add(SERVICE + "/in", SERVICE + "/in-compensate", IN);
    }

    private static void submit(Saga saga) throws Exception {
        try {
            saga.submit();
        } finally {
            System.out.println("gid: " + saga.getGid());
        }
    }

    private static void transfer(Tcc tcc) throws Exception {
        System.out.println("gid: " + tcc.getGid());
        tcc.callBranch(OUT, SERVICE + "/out-try", SERVICE + "/out-confirm", SERVICE + "/out-cancel").close();
        tcc.callBranch(IN, SERVICE + "/in-try", SERVICE + "/in-confirm", SERVICE + "/in-cancel").close();
    }

    private static Map<String, Long> order(String user) {
        return Map.of("user", Long.valueOf(System.getenv(user)), "amount", Long.valueOf(System.getenv("AMOUNT")));
    }
}
