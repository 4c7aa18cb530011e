//go:build linux

package fleet

import (
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// promise is a transfer and what its client was told of it.
type promise struct {
	id        string
	from, to  int
	amount    int64
	at        time.Time
	took      time.Duration
	tries     int
	answered  bool // by an answer that is final
	committed bool // ... and says so
	last      string
}

// load makes transfers at a rate. What they are is drawn from the seed.
type load struct {
	w       *world
	seed    uint64
	rate    int // of transfers in a second
	clients int // that wait for an answer at once
	began   time.Time
	client  *http.Client
	next    atomic.Int64

	mu   sync.Mutex // guards made
	made []*promise
}

// run makes transfers until the context ends, and returns when all of them have ended for their clients.
func (l *load) run(ctx context.Context) {
	var all sync.WaitGroup
	for range l.clients {
		all.Go(func() {
			for {
				n := l.next.Add(1) - 1
				pause(ctx, time.Until(l.began.Add(time.Duration(n)*time.Second/time.Duration(l.rate))))
				if ctx.Err() != nil {
					return
				}
				p := l.draw(n)
				l.transfer(ctx, p)
				l.mu.Lock()
				l.made = append(l.made, p)
				l.mu.Unlock()
			}
		})
	}
	all.Wait()
}

// draw draws the n-th transfer. Some are to be refused by one service or the other.
func (l *load) draw(n int64) *promise {
	r := rand.New(rand.NewPCG(l.seed, uint64(n)))
	open := func() int { return Closed + 1 + r.IntN(accounts-Closed-1) }
	p := &promise{id: fmt.Sprint("t-", n), from: open(), to: open(), amount: 1 + r.Int64N(50)}
	switch r.IntN(30) {
	case 0:
		p.from = Poor
	case 1:
		p.to = Closed
	}
	return p
}

// transfer asks again, under the same key, until the answer is final, or patience or the run has ended. It asks the same
// replica: a client stays where its key is known.
func (l *load) transfer(ctx context.Context, p *promise) {
	const patience, rest = 20 * time.Second, 200 * time.Millisecond
	p.at = time.Now()
	n, _ := strconv.Atoi(strings.TrimPrefix(p.id, "t-")) // draw has written it
	host := l.w.pods[n%replicas].host
	for p.tries == 0 || time.Since(p.at) < patience && ctx.Err() == nil {
		p.tries++
		if p.answered, p.committed, p.last = l.ask(host.At(inboundPort), p); p.answered {
			break
		}
		pause(ctx, rest)
	}
	p.took = time.Since(p.at)
}

// ask makes one request, and reads what is final: the application's own answer, or that the transaction is or will be
// aborted.
func (l *load) ask(address string, p *promise) (final, committed bool, said string) {
	body := fmt.Sprintf(`{"from":"%d","to":"%d","amount":%d}`, p.from, p.to, p.amount)
	r, err := http.NewRequestWithContext(context.Background(), http.MethodPost, "http://"+address+"/transfers", strings.NewReader(body))
	if err != nil {
		return false, false, err.Error()
	}
	r.Header.Set("Idempotency-Key", `"`+p.id+`"`)
	res, err := l.client.Do(r)
	if err != nil {
		return false, false, "no answer: " + err.Error()[strings.LastIndex(err.Error(), ": ")+2:]
	}
	defer res.Body.Close()
	if _, err := io.Copy(io.Discard, res.Body); err != nil {
		return false, false, "half an answer"
	}
	code, status := res.Header.Get("Tx-Error"), res.Header.Get("Tx-Status")
	said = strings.Join(strings.Fields(fmt.Sprint(res.StatusCode, " ", code, " ", status)), " ")
	switch {
	case res.StatusCode == http.StatusCreated && code == "":
		return true, true, said
	case status == "aborted" || status == "aborting":
		return true, false, said
	}
	return false, false, said
}
