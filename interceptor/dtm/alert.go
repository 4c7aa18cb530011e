package dtm

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"time"

	"txmesh/txn"
)

// Alerts says whom to tell of a branch that keeps failing. An empty URL: nobody.
type Alerts struct {
	URL   string
	After int // failed tries of one op
	// Dial opens the connections; nil: that of net/http.
	Dial func(ctx context.Context, network, address string) (net.Conn, error)
}

// The pace of alerts: a hook that does not answer is tried again with growing pauses, and what cannot be told in time is
// dropped and counted in the log, for the transaction goes on being repeated and will alert again.
const (
	alertsWaitingMax = 1000
	alertTimeout     = 3 * time.Second
	alertTries       = 4
	alertPauseMin    = 500 * time.Millisecond
	alertEvery       = time.Minute // of one op, however often it fails
)

// alert is the body of the hook.
type alert struct {
	GID        string `json:"gid"`
	Status     string `json:"status"`
	Branch     string `json:"branch"` // its URL
	Error      string `json:"error"`
	RetryCount int    `json:"retry_count"`
}

// alerter tells a hook of failing branches, one after another, in a goroutine of its own.
type alerter struct {
	opt     Alerts
	log     *slog.Logger
	client  *http.Client
	waiting chan alert
	ctx     context.Context
	cancel  context.CancelFunc
	wg      sync.WaitGroup

	mu   sync.Mutex           // guards told
	told map[string]time.Time // op of a branch, and when its alert was last sent
}

func newAlerter(opt Alerts, log *slog.Logger) *alerter {
	client := &http.Client{Timeout: alertTimeout}
	if opt.Dial != nil {
		t := http.DefaultTransport.(*http.Transport).Clone()
		t.DialContext = opt.Dial
		client.Transport = t
	}
	a := &alerter{opt: opt, log: log, client: client, waiting: make(chan alert, alertsWaitingMax),
		told: map[string]time.Time{}}
	a.ctx, a.cancel = context.WithCancel(context.Background())
	if opt.URL != "" {
		a.wg.Go(a.run)
	}
	return a
}

func (a *alerter) close() {
	a.cancel()
	a.wg.Wait()
}

// failed notes a try that brought no success.
func (a *alerter) failed(c txn.Call, cause string) {
	if a.opt.URL == "" || c.Branch == "" || c.Attempt < a.opt.After || !a.isDue(string(c.Tx)+"/"+c.Branch+"/"+c.Op.String()) {
		return
	}
	word := statusSubmitted
	if c.Op == txn.Undo {
		word = statusAborting
	}
	select {
	case a.waiting <- alert{GID: string(c.Tx), Status: word, Branch: string(c.Target), Error: cause, RetryCount: c.Attempt}:
	default:
		a.log.Warn("alert dropped, too many wait for the hook", "tx", c.Tx, "branch", c.Branch)
	}
}

// isDue caps the alerts of one op.
func (a *alerter) isDue(key string) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	now := time.Now()
	if now.Sub(a.told[key]) < alertEvery {
		return false
	}
	if len(a.told) >= alertsWaitingMax {
		clear(a.told)
	}
	a.told[key] = now
	return true
}

func (a *alerter) run() {
	for {
		select {
		case <-a.ctx.Done():
			return
		case x := <-a.waiting:
			a.tell(x)
		}
	}
}

// tell sends one alert.
func (a *alerter) tell(x alert) {
	body, err := json.Marshal(x)
	if err != nil {
		panic("dtm: alert: " + err.Error())
	}
	pause := alertPauseMin
	for n := 1; ; n++ {
		if err = a.post(body); err == nil {
			return
		}
		if n == alertTries || !a.sleep(pause) {
			break
		}
		pause *= 2
	}
	a.log.Warn("alert not delivered", "tx", x.GID, "hook", a.opt.URL, "error", err)
}

func (a *alerter) sleep(d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-a.ctx.Done():
		return false
	}
}

func (a *alerter) post(body []byte) error {
	r, err := http.NewRequestWithContext(a.ctx, http.MethodPost, a.opt.URL, bytes.NewReader(body))
	if err != nil {
		return err
	}
	r.Header.Set("Content-Type", "application/json")
	res, err := a.client.Do(r)
	if err != nil {
		return err
	}
	if err := res.Body.Close(); err != nil {
		return err
	}
	if res.StatusCode >= 300 {
		return fmt.Errorf("answered %d", res.StatusCode)
	}
	return nil
}
