package peer

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"

	"txmesh/txn"
)

// wireEvent is an event for a transaction whose journal another sidecar holds. Kind is the event's name, Event its
// fields by their names in package txn.
type wireEvent struct {
	Owner string          `json:"owner"`
	Tx    txn.ID          `json:"tx"`
	Kind  string          `json:"kind"`
	Event json.RawMessage `json:"event"`
}

// wireOffer says that a journal has been released for the sidecar that is told.
type wireOffer struct {
	Owner string `json:"owner"`
	Epoch uint64 `json:"epoch"`
}

// kindOf returns the name of an event that may travel; "" for those that only the holder itself makes.
func kindOf(e txn.Event) string {
	switch e.(type) {
	case txn.Begin:
		return "begin"
	case txn.Enlist:
		return "enlist"
	case txn.Leave:
		return "leave"
	case txn.Extend:
		return "extend"
	case txn.Decide:
		return "decide"
	case txn.Returned:
		return "returned"
	case txn.Force:
		return "force"
	case txn.Hasten:
		return "hasten"
	case txn.Stop:
		return "stop"
	default:
		return ""
	}
}

func decodeEvent(w wireEvent) (txn.Event, error) {
	switch w.Kind {
	case "begin":
		return decodeAs[txn.Begin](w)
	case "enlist":
		return decodeAs[txn.Enlist](w)
	case "leave":
		return decodeAs[txn.Leave](w)
	case "extend":
		return decodeAs[txn.Extend](w)
	case "decide":
		return decodeAs[txn.Decide](w)
	case "returned":
		return decodeAs[txn.Returned](w)
	case "force":
		return decodeAs[txn.Force](w)
	case "hasten":
		return decodeAs[txn.Hasten](w)
	case "stop":
		return decodeAs[txn.Stop](w)
	default:
		return nil, fmt.Errorf("%w: kind of event %q", errMalformed, w.Kind)
	}
}

func decodeAs[E txn.Event](w wireEvent) (txn.Event, error) {
	var e E
	if err := json.Unmarshal(w.Event, &e); err != nil {
		return nil, fmt.Errorf("%w: event %s: %w", errMalformed, w.Kind, err)
	}
	return e, nil
}

// Do brings an event to the sidecar that holds the journal of an owner. It returns when what was recorded is durable.
func (c *Client) Do(ctx context.Context, owner string, id txn.ID, e txn.Event) error {
	kind := kindOf(e)
	if kind == "" {
		return fmt.Errorf("peer: %T is not an event that travels", e)
	}
	body, err := json.Marshal(e)
	if err != nil {
		return fmt.Errorf("peer: encode %T: %w", e, err)
	}
	ctx, cancel := context.WithTimeout(ctx, c.timeout)
	defer cancel()
	return c.post(ctx, owner, "/v1/do", wireEvent{Owner: owner, Tx: id, Kind: kind, Event: body}, &struct{}{})
}

// Offer tells the sidecar whose peer port is at address that a journal was released for it.
func (c *Client) Offer(ctx context.Context, address, owner string, epoch uint64) error {
	body, err := json.Marshal(wireOffer{owner, epoch})
	if err != nil {
		return errors.New("peer: encode offer: " + err.Error())
	}
	ctx, cancel := context.WithTimeout(ctx, c.timeout)
	defer cancel()
	return c.ask(ctx, c.http, "POST", address, "/v1/offer", body, &struct{}{})
}

func (s *Server) do(ctx context.Context, body []byte) (any, error) {
	var w wireEvent
	if err := read(body, &w); err != nil {
		return nil, err
	}
	if !s.opt.Local.Holds(w.Owner) {
		return nil, s.misdirected(w.Tx, w.Owner)
	}
	e, err := decodeEvent(w)
	if err != nil {
		return nil, err
	}
	_, err = s.opt.Local.Do(ctx, w.Tx, e)
	return struct{}{}, err
}

func (s *Server) offer(_ context.Context, body []byte) (any, error) {
	var w wireOffer
	if err := read(body, &w); err != nil {
		return nil, err
	}
	if s.opt.Offered == nil {
		return nil, fmt.Errorf("journal of %s was offered to a sidecar with a store of its own: %w", w.Owner, ErrMisdirected)
	}
	s.opt.Offered(w.Owner, w.Epoch)
	return struct{}{}, nil
}
