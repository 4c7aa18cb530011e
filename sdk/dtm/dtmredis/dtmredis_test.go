package dtmredis

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"txmesh/sdk/dtm"
	"txmesh/tests/databases"
)

var servers databases.Set

func TestMain(m *testing.M) {
	code := m.Run()
	servers.Close()
	os.Exit(code)
}

// stock is an empty Redis with one amount in it.
func stock(t *testing.T, amount int64) *redis.Client {
	c := redis.NewClient(&redis.Options{Addr: servers.Redis(t)})
	t.Cleanup(func() { c.Close() })
	err := c.FlushAll(t.Context()).Err()
	if err == nil {
		err = c.Set(t.Context(), "stock", amount, 0).Err()
	}
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func adjust1(t *testing.T, c *redis.Client, transType, op string, delta int64) error {
	b := dtm.Branch{TransType: transType, GID: "g", ID: "01", Op: op}
	if transType == dtm.TypeMsg {
		b.ID = "00"
	}
	return NewBarrier(b).AdjustAmount(t.Context(), c, "stock", delta)
}

func TestBarrierVerdicts(t *testing.T) {
	for _, tt := range []struct {
		name  string
		start int64
		calls string // op and delta, in the order of their coming
		want  int64
		last  error
	}{
		{"action", 40, "action-30", 10, nil},
		{"action that takes all", 30, "action-30", 0, nil},
		{"action that takes too much", 20, "action-30", 20, dtm.ErrFailure},
		{"repeated action", 100, "action-30 action-30", 70, nil},
		{"repeated action, when there is not enough for another", 40, "action-30 action-30", 10, nil},
		{"action and compensation", 40, "action-30 compensate+30", 40, nil},
		{"repeated compensation", 40, "action-30 compensate+30 compensate+30", 40, nil},
		{"compensation of nothing", 40, "compensate+30", 40, nil},
		{"compensation of a refusal", 20, "action-30 compensate+30", 20, nil},
		{"compensation that would take too much, of nothing", 20, "compensate-30", 20, nil},
		{"action after its compensation", 40, "compensate+30 action-30", 40, nil},
		{"try, cancel, late try", 40, "try-30 cancel+30 try-30", 40, nil},
		{"cancel, late try, cancel", 40, "cancel+30 try-30 cancel+30", 40, nil},
		{"action and rollback", 40, "action-30 rollback+30", 40, nil},
		{"confirm", 40, "try-30 confirm-5 confirm-5", 5, nil},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c := stock(t, tt.start)
			var last error
			for _, call := range strings.Fields(tt.calls) {
				i := strings.IndexAny(call, "+-")
				var delta int64
				if _, err := fmt.Sscan(call[i:], &delta); err != nil {
					t.Fatal(err)
				}
				last = adjust1(t, c, "saga", call[:i], delta)
			}
			if !errors.Is(last, tt.last) || tt.last == nil && last != nil {
				t.Errorf("last call: %v, want %v", last, tt.last)
			}
			if got := c.Get(t.Context(), "stock").Val(); got != fmt.Sprint(tt.want) {
				t.Errorf("stock = %s, want %d", got, tt.want)
			}
		})
	}
}

func TestMarkersAreThoseOfTheProtocol(t *testing.T) {
	c := stock(t, 40)
	b := NewBarrier(dtm.Branch{TransType: "tcc", GID: "g", ID: "01", Op: "cancel"})
	b.Expiry = time.Hour
	if err := b.AdjustAmount(t.Context(), c, "stock", 30); err != nil {
		t.Fatal(err)
	}
	for key, want := range map[string]string{"g-01-cancel-01": "cancel", "g-01-try-01": "rollback"} {
		if got := c.Get(t.Context(), key).Val(); got != want {
			t.Errorf("%s = %q, want %q", key, got, want)
		}
		if ttl := c.TTL(t.Context(), key).Val(); ttl <= 59*time.Minute || ttl > time.Hour {
			t.Errorf("%s is kept for %v", key, ttl)
		}
	}
}

func TestBarrierTellsCallsOfOneRequestApart(t *testing.T) {
	c := stock(t, 100)
	for range 2 { // the request is repeated
		b := NewBarrier(dtm.Branch{TransType: "saga", GID: "g", ID: "01", Op: "action"})
		for range 3 {
			if err := b.AdjustAmount(t.Context(), c, "stock", -10); err != nil {
				t.Fatal(err)
			}
		}
	}
	if got := c.Get(t.Context(), "stock").Val(); got != "70" {
		t.Errorf("stock = %s, want 70", got)
	}
}

// Redis takes nothing back when a script breaks: no marker may be there before the amount is changed.
func TestErrorLeavesNoMarker(t *testing.T) {
	c := stock(t, 0)
	if err := c.Set(t.Context(), "stock", "1.5", 0).Err(); err != nil {
		t.Fatal(err)
	}
	if err := adjust1(t, c, "saga", "action", 1); err == nil || errors.Is(err, dtm.ErrFailure) {
		t.Errorf("error = %v, want one of unknown outcome", err)
	}
	if keys := c.Keys(t.Context(), "g-*").Val(); len(keys) != 0 {
		t.Errorf("markers: %q", keys)
	}
	if err := c.Del(t.Context(), "stock").Err(); err != nil {
		t.Fatal(err)
	}
	if err := adjust1(t, c, "saga", "action", 1); !errors.Is(err, dtm.ErrFailure) {
		t.Errorf("without an amount: %v", err)
	}
}

func TestMessageIsAskedFor(t *testing.T) {
	ask := func(c *redis.Client) error {
		return NewBarrier(dtm.Branch{TransType: "msg", GID: "g", ID: "00", Op: "msg"}).QueryPrepared(t.Context(), c)
	}
	t.Run("after its sender", func(t *testing.T) {
		c := stock(t, 40)
		if err := adjust1(t, c, "msg", "msg", -30); err != nil {
			t.Fatal(err)
		}
		if err := errors.Join(ask(c), ask(c)); err != nil {
			t.Error(err)
		}
		if err := adjust1(t, c, "msg", "msg", -30); !errors.Is(err, dtm.ErrDuplicated) {
			t.Errorf("sent twice: %v", err)
		}
	})
	t.Run("before its sender", func(t *testing.T) {
		c := stock(t, 40)
		for range 2 {
			if err := ask(c); !errors.Is(err, dtm.ErrFailure) {
				t.Errorf("error = %v", err)
			}
		}
		if err := adjust1(t, c, "msg", "msg", -30); !errors.Is(err, dtm.ErrDuplicated) || c.Get(t.Context(), "stock").Val() != "40" {
			t.Errorf("sent after the question: %v, stock %s", err, c.Get(t.Context(), "stock").Val())
		}
	})
}

// Many calls of one branch at once come to one try and one cancel at most.
func TestBarrierUnderConcurrency(t *testing.T) {
	for range 50 {
		c := stock(t, 100)
		const repeats = 4
		errs := make(chan error)
		for i := range 2 * repeats {
			op, delta := "try", int64(-1)
			if i%2 == 1 {
				op, delta = "cancel", 1
			}
			go func() { errs <- adjust1(t, c, "tcc", op, delta) }()
		}
		for range 2 * repeats {
			if err := <-errs; err != nil {
				t.Error(err)
			}
		}
		if got := c.Get(t.Context(), "stock").Val(); got != "100" {
			t.Fatalf("stock = %s, want 100", got)
		}
	}
}
