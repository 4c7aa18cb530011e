package memory_test

import (
	"testing"

	"txmesh/txlog"
	"txmesh/txlog/memory"
	"txmesh/txlog/txlogtest"
)

func TestMemoryConforms(t *testing.T) {
	txlogtest.Run(t, func(*testing.T) func() txlog.Store {
		s := memory.New(memory.Options{RetainBytes: txlogtest.RetainBytes})
		return func() txlog.Store {
			s.Reopen()
			return s
		}
	})
}

func TestSharedMemoryConforms(t *testing.T) {
	txlogtest.RunShared(t, func(*testing.T) txlog.Shared {
		return memory.NewShared(memory.Options{RetainBytes: txlogtest.RetainBytes})
	})
}
