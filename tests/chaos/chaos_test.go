package chaos

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"os"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"txmesh/sdk/dtm"
)

// storm is how hard a run is. TXMESH_CHAOS=1000 asks for so many transactions of each type; kills and time grow with them.
type storm struct {
	each       int
	clients    int
	kills      int
	lasts      time.Duration // at least
	succeeding float64       // the part that must succeed
}

func newStorm(t *testing.T) storm {
	t.Helper()
	const killEvery = 1200 * time.Millisecond
	s := storm{each: 20, clients: 16, succeeding: 0.6}
	if asked := os.Getenv("TXMESH_CHAOS"); asked != "" {
		var err error
		if s.each, err = strconv.Atoi(asked); err != nil || s.each < 1 {
			t.Fatalf("TXMESH_CHAOS is %q: want the number of transactions of each type, such as 1000", asked)
		}
	}
	s.kills = 5 + s.each/10
	s.lasts = time.Duration(s.kills) * killEvery
	return s
}

// kinds are the types of transaction, which take turns.
func kinds() []string {
	return []string{dtm.TypeSaga, dtm.TypeTCC, dtm.TypeXA, dtm.TypeMsg, dtm.TypeWorkflow}
}

// accounts is how many there are in each database: so many that XA transactions that hold a row are seldom in the way.
const accounts = 200

// delayMax is how long the bank pauses at most before and after its work, so that faults meet calls under way.
const delayMax = 20 * time.Millisecond

// chaos is one run.
type chaos struct {
	storm
	t               *testing.T
	sidecar, bank   *process
	api             string // base URL of the sidecar's own API
	dataDir         string
	client          client
	maria, postgres Ledger
	began           time.Time
	killed          chan struct{} // closed when the killer has done its part
	next            atomic.Int64  // number of the next transfer

	mu   sync.Mutex // guards made
	made []*promise
}

// TestMoneyIsConserved is the main proof of the door for clients of DTM: transfers between two databases in all types of
// transaction, while sidecar and bank are killed again and again and clients go away. Afterwards the databases say what
// became of every transfer.
func TestMoneyIsConserved(t *testing.T) {
	c := newChaos(t)
	var all sync.WaitGroup
	for range c.clients {
		all.Go(c.transfers)
	}
	all.Go(func() {
		defer close(c.killed)
		if err := c.kill(); err != nil {
			t.Error(err)
		}
	})
	all.Wait()
	c.settle()
	c.check()
}

// newChaos starts everything.
func newChaos(t *testing.T) *chaos {
	t.Helper()
	mariaDSN, postgresDSN := servers.MariaDB(t), servers.Postgres(t)
	dir := t.TempDir()
	ports, err := freePorts(4)
	must(t, err)
	must(t, build(dir))
	c := &chaos{storm: newStorm(t), t: t, killed: make(chan struct{}), api: "http://" + ports[1], dataDir: dir + "/data"}
	c.maria, err = OpenMariaDB(mariaDSN)
	must(t, err)
	t.Cleanup(func() { c.maria.DB.Close() })
	c.postgres, err = OpenPostgres(postgresDSN)
	must(t, err)
	t.Cleanup(func() { c.postgres.DB.Close() })
	must(t, errors.Join(c.maria.Create(t.Context(), accounts), c.postgres.Create(t.Context(), accounts)))
	c.client = client{door: "http://" + ports[0] + "/api/dtmsvr", bank: "http://" + ports[3],
		transport: &http.Transport{MaxIdleConnsPerHost: c.clients}}
	c.sidecar = &process{path: dir + "/txmesh-sidecar", log: dir + "/sidecar.log", args: []string{"--dtm", ports[0], "--api", ports[1],
		"--peer", ports[2], "--data-dir", c.dataDir, "--dtm-retry-interval", "100ms", "--dtm-retry-max", "1s",
		"--dtm-resume-after", "1s", "--log-level", "warn"}}
	c.bank = &process{path: dir + "/bank", log: dir + "/bank.log", args: []string{"--listen", ports[3], "--door", c.client.door,
		"--mariadb", mariaDSN, "--postgres", postgresDSN, "--delay-max", delayMax.String()}}
	for _, p := range []*process{c.bank, c.sidecar} {
		must(t, p.start())
		t.Cleanup(func() {
			if err := p.kill(); err != nil {
				t.Error(err)
			}
			if t.Failed() {
				t.Logf("%s says at last:\n%s", p.path, p.tail())
			}
		})
	}
	c.began = time.Now()
	return c
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// transfers is one client: it takes the next transfer when its time has come, and goes on while there are kills.
func (c *chaos) transfers() {
	total := int64(c.each * len(kinds()))
	for n := c.next.Add(1) - 1; n < total || c.killing(); n = c.next.Add(1) - 1 {
		<-time.After(time.Until(c.began.Add(c.lasts * time.Duration(n) / time.Duration(total))))
		p := c.promise(n)
		c.client.transfer(context.Background(), p)
		c.mu.Lock()
		c.made = append(c.made, p)
		c.mu.Unlock()
	}
}

func (c *chaos) killing() bool {
	select {
	case <-c.killed:
		return false
	default:
		return true
	}
}

// promise draws the n-th transfer: most could succeed, some are refused, some lose their client on the way.
func (c *chaos) promise(n int64) *promise {
	const requestsMax = 6 // of one client, more or less
	kind := kinds()[n%int64(len(kinds()))]
	open := func() int { return Closed + 1 + rand.IntN(accounts-Closed-1) }
	p := &promise{kind: kind, gid: fmt.Sprintf("%s-%d", kind, n), amount: 1 + rand.Int64N(50), wait: rand.IntN(2) == 0,
		counts: map[string]int{}, from: side{"/mariadb", c.maria, open()}, to: side{"/postgres", c.postgres, open()}}
	if rand.IntN(2) == 0 {
		p.from.path, p.from.ledger, p.to.path, p.to.ledger = p.to.path, p.to.ledger, p.from.path, p.from.ledger
	}
	switch {
	case rand.IntN(25) == 0:
		p.from.id, p.refusable = Poor, true
	case rand.IntN(25) == 0 && kind != dtm.TypeMsg: // once sent, a message must arrive
		p.to.id, p.refusable = Closed, true
	}
	if rand.IntN(16) == 0 {
		p.diesAt = 1 + rand.IntN(requestsMax)
	}
	if rand.IntN(12) == 0 {
		p.patience = rand.N(2*delayMax) + 1
	}
	return p
}

// kill kills and restarts, mostly the sidecar, at random moments spread over the run. On a machine where a start takes
// long, the pauses grow with it.
func (c *chaos) kill() error {
	mean := c.lasts / time.Duration(c.kills+1)
	const restsFor = 2 // times as long as the strike took
	var rest time.Duration
	for c.sidecar.kills+c.bank.kills < c.kills {
		at := c.began.Add(mean*time.Duration(c.sidecar.kills+c.bank.kills) + rand.N(mean))
		<-time.After(max(time.Until(at), rest))
		dead := time.Now()
		var err error
		switch n := rand.IntN(8); {
		case n < 5:
			err = c.sidecar.again()
		case n < 7:
			err = c.bank.again()
		default: // both are down at once
			err = together(c.sidecar.again, c.bank.again)
		}
		if err != nil {
			return err
		}
		rest = restsFor * time.Since(dead)
	}
	return nil
}

// together does both at once.
func together(a, b func() error) error {
	done := make(chan error, 1)
	go func() { done <- a() }()
	err := b()
	return errors.Join(err, <-done)
}
