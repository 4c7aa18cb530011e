// Package etcd is the shared store on etcd 3.5 or later: a txlog.Shared that many sidecars use at once and that survives
// the loss of a minority of its members. It decides what is one transaction of etcd, who is fenced, and when nothing new
// is taken; it never looks into a record beyond what a list shows, never compares clocks of two machines, and keeps no
// file. Start at Open; journal.go is its heart.
//
// Each owner has one committer here. What waits while its transaction is under way goes into the next one, so that one
// proposal, and one sync of each member's log, carries many appends. That transaction is
//
//	if    o/<owner> is still of our epoch, and g/<owner> is what our last transaction wrote
//	then  g/<owner> = the number of this transaction
//	      one nested transaction for each append
//	else  read both
//
// The first comparison fences. The second makes a transaction happen once: when etcd does not answer, the committer
// sends the very same transaction again, and if the number in g is its own, then it had happened. So an append that
// waits long enough learns what became of it, and no append is found twice. An append that is the first of a
// transaction compares, within its own nested transaction, that nobody has begun that id: it is refused alone, with
// ErrTaken. Nesting also keeps below --max-txn-ops, which the levels share; an append of many transactions, which is what
// an engine makes of all that is ready, nests its writes once more.
//
// Keys, behind the prefix; ids are escaped like the path of a URL, numbers are hexadecimal:
//
//	o/<owner>                  who holds the journal; the revision that wrote it is the epoch
//	b/<owner>                  the beat, which is the revision that wrote it; "free" once released
//	g/<owner>                  the number of the last transaction of the owner's committer, and the bytes it has finished
//	e/<id>/<sequence>          the entries of one append; the first row names the owner
//	u/<owner>/<id>             an unfinished transaction, as a list shows it
//	l/<^begun>/<^id>           a finished one, as a list shows it, newest first (the id in binary, its bits inverted)
//	f/<finished>/<id>          what Trim needs of a finished one, oldest first
//	k/<key>                    the newest transaction begun with this Spec.Key
//	n                          the bytes that Trim has taken from those in g
//	t/<table>/<key>            a row of a table, the key as it is
//
// An epoch is a revision of the whole store, so it grows whatever becomes of the owner's key. Leases of etcd are not
// used: they end by the clock of the leader, begin anew when another leader is elected, and would remove the key on
// which appends are fenced. Who watches a beat judges by a clock of its own, as txlog.Leases says, and a wrong judgement
// costs only work. docs/reference/store-etcd.md has the settings and what each operation costs.
package etcd

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"strings"
	"sync"
	"time"

	"txmesh/txlog"
)

// Options configures an engine. Only Endpoints must be set.
type Options struct {
	Endpoints []string // host:port of the members
	Prefix    string   // of all keys; empty: "/txmesh/"
	TLS       *tls.Config
	User      string
	Password  string
	Log       *slog.Logger // nil: silent
	// Dial opens each connection, within the context's deadline; nil: a plain one.
	Dial func(ctx context.Context, network, address string) (net.Conn, error)

	RetainBytes int64         // Trim forgets the oldest finished transactions beyond it; 0: 512 MiB
	QuotaBytes  int64         // --quota-backend-bytes, for servers before 3.6, which do not tell; 0: what they tell
	OpsMax      int           // --max-txn-ops of the servers; 0: 128
	BytesMax    int           // --max-request-bytes of the servers; 0: 1.5 MiB
	QueueMax    int           // appends of one owner that may wait; more are refused with ErrUnavailable; 0: 4096
	Try         time.Duration // after it a request goes to another member; 0: 1 s
	Patience    time.Duration // an operation whose context lasts longer ends with ErrUnavailable; 0: 10 s
	Stall       time.Duration // Accepts says no when an append, or a probe, takes longer; 0: 2 s
}

func (o Options) withDefaults() Options {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.Dial == nil {
		o.Dial = new(net.Dialer).DialContext
	}
	if o.Prefix == "" {
		o.Prefix = "/txmesh/"
	}
	if !strings.HasSuffix(o.Prefix, "/") {
		o.Prefix += "/"
	}
	o.RetainBytes = orElse(o.RetainBytes, 512<<20)
	o.OpsMax = orElse(o.OpsMax, 128)
	o.BytesMax = orElse(o.BytesMax, 3<<19)
	o.QueueMax = orElse(o.QueueMax, 4096)
	o.Try = orElse(o.Try, time.Second)
	o.Patience = orElse(o.Patience, 10*time.Second)
	o.Stall = orElse(o.Stall, 2*time.Second)
	return o
}

func orElse[N int | int64 | time.Duration](n, otherwise N) N {
	if n == 0 {
		return otherwise
	}
	return n
}

// Engine is a txlog.Shared. All methods are safe for many goroutines.
type Engine struct {
	opts    Options
	keys    keys
	members []*member

	ctx    context.Context // of what goes on behind the callers: committers and probes; ends with Close
	cancel context.CancelFunc
	work   sync.WaitGroup

	mu       sync.Mutex // guards the fields below
	journals map[string]*journal
	health   health
	current  int // of members: who is asked
	closed   bool
}

var _ txlog.Shared = (*Engine)(nil)

// opsMin and bytesMin are what one append of one transaction takes at least.
const (
	opsMin   = 16
	bytesMin = 256 << 10
)

// Open connects to etcd and returns once it has answered, or an error that wraps txlog.ErrUnavailable.
func Open(ctx context.Context, o Options) (*Engine, error) {
	o = o.withDefaults()
	if len(o.Endpoints) == 0 {
		return nil, errors.New("open etcd: no endpoints; name the host:port of each member")
	}
	if o.OpsMax < opsMin || o.BytesMax < bytesMin {
		return nil, fmt.Errorf("open etcd: %d operations and %d bytes of a request, want at least %d and %d; raise --max-txn-ops and --max-request-bytes",
			o.OpsMax, o.BytesMax, opsMin, bytesMin)
	}
	e := &Engine{opts: o, keys: keys{o.Prefix}, journals: map[string]*journal{}}
	for _, endpoint := range o.Endpoints {
		e.members = append(e.members, &member{endpoint: endpoint})
	}
	e.current = rand.IntN(len(e.members)) // so that many engines share the load
	e.ctx, e.cancel = context.WithCancel(context.Background())
	if err := e.probe(ctx); err != nil {
		e.cancel()
		return nil, errors.Join(fmt.Errorf("open etcd at %s: %w", strings.Join(o.Endpoints, ","), err), e.disconnect())
	}
	e.work.Go(e.watch)
	return e, nil
}

// start runs a committer, unless the engine is closed.
func (e *Engine) start(run func()) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.closed {
		return txlog.ErrClosed
	}
	e.work.Go(run)
	return nil
}

// As implements txlog.Shared.
func (e *Engine) As(o txlog.Owner) txlog.Store {
	e.mu.Lock()
	defer e.mu.Unlock()
	j := e.journals[o.ID]
	if j == nil || j.owner != o {
		j = newJournal(e, o)
		e.journals[o.ID] = j
	}
	return &store{engine: e, journal: j}
}

// Close ends the engine and the stores of all owners. It waits for appends that are under way, but not for an
// etcd that does not answer.
func (e *Engine) Close() error {
	e.mu.Lock()
	if e.closed {
		e.mu.Unlock()
		return nil
	}
	e.closed = true
	var all []*journal
	for _, j := range e.journals {
		all = append(all, j)
	}
	e.mu.Unlock()
	deadline := time.After(2 * e.opts.Try)
	for _, j := range all {
		j.drain(deadline)
	}
	e.cancel()
	e.work.Wait()
	return e.disconnect()
}
