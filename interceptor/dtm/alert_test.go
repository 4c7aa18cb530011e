package dtm

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"txmesh/txn"
)

// hook is the receiver of alerts; it fails so many times first.
type hook struct {
	fails int
	tries int
	got   []alert
}

func (h *hook) RoundTrip(r *http.Request) (*http.Response, error) {
	h.tries++
	if h.fails > 0 {
		h.fails--
		return nil, errors.New("hook is down")
	}
	body, err := io.ReadAll(r.Body)
	if err != nil {
		return nil, err
	}
	var a alert
	if err := json.Unmarshal(body, &a); err != nil {
		return nil, err
	}
	h.got = append(h.got, a)
	return &http.Response{StatusCode: http.StatusOK, Body: io.NopCloser(strings.NewReader(""))}, nil
}

func alerting(t *testing.T, h *hook) *alerter {
	t.Helper()
	a := newAlerter(Alerts{URL: "http://hook/alert", After: 3}, slog.New(slog.DiscardHandler))
	a.client.Transport = h
	return a
}

func failing(op txn.Op, attempt int) txn.Call {
	return txn.Call{Tx: "g1", Branch: "01", Op: op, Target: []byte("http://bank/undo"), Attempt: attempt}
}

func TestAlertIsToldOnceFromTheLimitOn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := &hook{}
		a := alerting(t, h)
		for n := 1; n <= 5; n++ {
			a.failed(failing(txn.Undo, n), "answered 500")
		}
		synctest.Wait()
		want := []alert{{GID: "g1", Status: statusAborting, Branch: "http://bank/undo", Error: "answered 500", RetryCount: 3}}
		if diff := cmp.Diff(want, h.got); diff != "" {
			t.Errorf("alerts (-want +got):\n%s", diff)
		}
		time.Sleep(alertEvery)
		a.failed(failing(txn.Undo, 9), "answered 500")
		synctest.Wait()
		if len(h.got) != 2 || h.got[1].RetryCount != 9 {
			t.Errorf("after %v: alerts %+v, want a second with retry_count 9", alertEvery, h.got)
		}
		a.close()
	})
}

func TestAlertIsTriedAgainWithGrowingPauses(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := &hook{fails: 2}
		a := alerting(t, h)
		began := time.Now()
		a.failed(failing(txn.Commit, 3), "no answer")
		time.Sleep(3 * alertPauseMin)
		synctest.Wait()
		if took := time.Since(began); len(h.got) != 1 || h.tries != 3 || h.got[0].Status != statusSubmitted {
			t.Errorf("after %v: %d tries, alerts %+v, want the third to be taken", took, h.tries, h.got)
		}
		h.fails = 100
		a.failed(txn.Call{Tx: "g2", Branch: "01", Op: txn.Commit, Attempt: 3}, "no answer")
		time.Sleep(time.Minute)
		synctest.Wait()
		if h.tries != 3+alertTries {
			t.Errorf("%d tries of a hook that is down, want %d", h.tries-3, alertTries)
		}
		a.close()
	})
}

// Nobody waits for a hook: neither the call that failed nor the end of the sidecar.
func TestAlertHoldsNobodyUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := &hook{fails: 1 << 30}
		a := alerting(t, h)
		began := time.Now()
		for i := range 3 * alertsWaitingMax {
			c := failing(txn.Commit, 3)
			c.Branch = branchID(i)
			a.failed(c, "no answer")
		}
		a.close()
		if took := time.Since(began); took != 0 {
			t.Errorf("%d alerts and the end took %v, want no time", 3*alertsWaitingMax, took)
		}
	})
}

// TestAlertsGoOutByTheDoorsOwnWay: in a pod whose calls are redirected, only marked connections leave as they are.
func TestAlertsGoOutByTheDoorsOwnWay(t *testing.T) {
	dialled := make(chan string, 1)
	a := newAlerter(Alerts{URL: "http://hook:81/alert", After: 1, Dial: func(_ context.Context, _, address string) (net.Conn, error) {
		select {
		case dialled <- address:
		default:
		}
		return nil, errors.New("the hook is down")
	}}, slog.New(slog.DiscardHandler))
	defer a.close()
	a.failed(failing(txn.Undo, 1), "answered 500")
	if got := <-dialled; got != "hook:81" {
		t.Errorf("dialled %q", got)
	}
}
