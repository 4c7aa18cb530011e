package dtm

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"unicode/utf8"
)

// Saga is a row of actions, each with what takes it back. It is made by one goroutine.
type Saga struct {
	Global
	Concurrent bool // start all actions at once, save for what Order says
	steps      []map[string]string
	payloads   []string
	orders     map[int][]int
	err        error
}

// NewSaga returns an empty saga for the door at server, such as http://localhost:36789/api/dtmsvr.
func NewSaga(server, gid string) *Saga { return &Saga{Global: Global{Server: server, GID: gid}} }

// Add appends a step. An empty URL means that nothing is to be done. The payload goes to both calls: bytes as they
// are, anything else as JSON; an error of it is told by Submit.
func (s *Saga) Add(action, compensate string, payload any) *Saga {
	text, err := storedText(payload)
	s.err = errors.Join(s.err, wrapStep(len(s.steps), err))
	s.steps = append(s.steps, map[string]string{"action": action, "compensate": compensate})
	s.payloads = append(s.payloads, text)
	return s
}

// Order lets a step of a concurrent saga begin only after others have succeeded. Steps count from 0.
func (s *Saga) Order(step int, after ...int) *Saga {
	if s.orders == nil {
		s.orders = map[int][]int{}
	}
	s.orders[step] = append(s.orders[step], after...)
	return s
}

// Submit hands the saga over. The door carries it to its end whether or not anybody waits. With WaitResult the error
// wraps ErrFailure also when the saga has not ended yet: Client.Query tells.
func (s *Saga) Submit(ctx context.Context) error {
	if err := errors.Join(s.err, s.checkOrders()); err != nil {
		return fmt.Errorf("saga %s: %w", s.GID, err)
	}
	b := s.body(TypeSaga)
	b.Steps, b.Payloads, b.Concurrent = s.steps, s.payloads, s.Concurrent
	if s.Concurrent {
		custom, err := json.Marshal(struct {
			Concurrent bool          `json:"concurrent"`
			Orders     map[int][]int `json:"orders,omitempty"`
		}{true, s.orders})
		if err != nil {
			return err
		}
		b.CustomData = string(custom)
	}
	_, err := s.post(ctx, "submit", b)
	return err
}

func (s *Saga) checkOrders() error {
	if len(s.orders) > 0 && !s.Concurrent {
		return errors.New("has an order but is not concurrent; set Concurrent or leave Order out")
	}
	for step, after := range s.orders {
		for _, n := range append([]int{step}, after...) {
			if n < 0 || n >= len(s.steps) {
				return fmt.Errorf("order names step %d, but there are %d; count from 0", n, len(s.steps))
			}
		}
	}
	return nil
}

// storedText is a payload that travels inside of JSON, where only text survives.
func storedText(payload any) (string, error) {
	text, err := payloadText(payload)
	if err == nil && !utf8.ValidString(text) {
		return "", errors.New("payload is not UTF-8; encode it, for instance in base64")
	}
	return text, err
}

func wrapStep(step int, err error) error {
	if err != nil {
		return fmt.Errorf("step %d: %w", step, err)
	}
	return nil
}
