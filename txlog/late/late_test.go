package late_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"testing"
	"testing/synctest"
	"time"

	"txmesh/txlog"
	"txmesh/txlog/late"
	"txmesh/txlog/memory"
	"txmesh/txlog/txlogtest"
	"txmesh/txn"
)

func TestALateEngineConforms(t *testing.T) {
	txlogtest.RunShared(t, func(t *testing.T) txlog.Shared {
		s, err := late.Open(t.Context(), func(context.Context) (txlog.Shared, error) {
			return memory.NewShared(memory.Options{RetainBytes: txlogtest.RetainBytes}), nil
		}, slog.New(slog.DiscardHandler))
		if err != nil {
			t.Fatal(err)
		}
		return s
	})
}

// An engine that is away at first says so, and serves once it is there: also by stores and tables that were made before.
func TestAnEngineThatComesLate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tries, there := 0, false
		s, err := late.Open(t.Context(), func(context.Context) (txlog.Shared, error) {
			tries++
			if !there {
				return nil, fmt.Errorf("dial: %w", txlog.ErrUnavailable)
			}
			return memory.NewShared(memory.Options{}), nil
		}, slog.New(slog.DiscardHandler))
		if err != nil {
			t.Fatal(err)
		}
		owner := txlog.Owner{ID: "AAAAAAAAAAAAA"}
		store := s.As(owner)
		rows := store.Table("t")
		_, claim := s.Claim(t.Context(), owner.ID, 0, txlog.Holder{Sidecar: owner.ID})
		_, get := rows.Get(t.Context(), "k")
		for name, err := range map[string]error{"accepts": store.Accepts(), "claim": claim, "get": get,
			"append": store.Append(t.Context(), []txlog.Entry{{Tx: "a", Record: txn.Left{}}}, true)} {
			if !errors.Is(err, txlog.ErrUnavailable) {
				t.Errorf("%s: %v, want ErrUnavailable", name, err)
			}
		}
		time.Sleep(20 * time.Second)
		if tries < 5 || tries > 15 {
			t.Errorf("%d tries in 20 s, want some, and ever fewer", tries)
		}
		there = true
		time.Sleep(5 * time.Second)
		if err := rows.Swap(t.Context(), "k", nil, []byte("v")); err != nil {
			t.Errorf("swap once it is there: %v", err)
		}
		l, err := s.Claim(t.Context(), owner.ID, 0, txlog.Holder{Sidecar: owner.ID})
		if err != nil {
			t.Fatal(err)
		}
		if err := s.As(l.Owner).Append(t.Context(), []txlog.Entry{{Tx: "a", Record: txn.Began{Spec: txn.Spec{ID: "a"}}}}, true); err != nil {
			t.Error(err)
		}
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
}

// What is wrong with the configuration is said at once.
func TestAWrongEngineIsNotWaitedFor(t *testing.T) {
	wrong := errors.New("password refused")
	_, err := late.Open(t.Context(), func(context.Context) (txlog.Shared, error) { return nil, wrong }, slog.New(slog.DiscardHandler))
	if !errors.Is(err, wrong) {
		t.Errorf("open = %v, want %v", err, wrong)
	}
}
