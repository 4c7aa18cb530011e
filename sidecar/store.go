package sidecar

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"txmesh/interceptor"
	"txmesh/txlog"
	"txmesh/txlog/badger"
	"txmesh/txlog/etcd"
	"txmesh/txlog/late"
	"txmesh/txlog/sql"
)

// openStore opens the journal's engine and finds out which owner this sidecar is. A shared engine is not claimed yet.
func (s *Sidecar) openStore() error {
	if !s.cfg.SharedStore() {
		embedded, err := badger.Open(badger.Options{Dir: s.cfg.DataDir, Log: s.log, RetainBytes: s.cfg.RetentionBytes})
		if err != nil {
			return err
		}
		s.store, s.owner, s.home = embedded, embedded.Owner().ID, embedded.Owner().ID
		return nil
	}
	var err error
	if s.lock, err = lockDir(s.cfg.DataDir); err != nil {
		return fmt.Errorf("data-dir: %w", err)
	}
	if s.owner, err = ownerOf(s.cfg.DataDir); err != nil {
		return fmt.Errorf("data-dir: %w", err)
	}
	if s.shared == nil { // a test brings its own
		if s.shared, err = s.openShared(); err != nil {
			return fmt.Errorf("store: %w", err)
		}
	}
	s.store, s.home = s.shared.As(txlog.Owner{ID: s.owner}), interceptor.SharedHome(s.cfg.Service)
	return nil
}

// openMax bounds one try to reach a shared store.
const openMax = 5 * time.Second

// openShared opens the shared store, later if it cannot be reached now.
func (s *Sidecar) openShared() (txlog.Shared, error) {
	shared, err := late.Open(context.Background(), func(ctx context.Context) (txlog.Shared, error) {
		ctx, cancel := context.WithTimeout(ctx, openMax)
		defer cancel()
		return s.reachShared(ctx)
	}, s.log)
	if err != nil {
		return nil, err
	}
	return shared, nil
}

// reachShared opens the shared store by connections of this sidecar.
func (s *Sidecar) reachShared(ctx context.Context) (txlog.Shared, error) {
	if !strings.HasPrefix(s.cfg.Store, "etcd://") {
		return sql.Open(ctx, sql.Options{DSN: s.cfg.Store, RetainBytes: s.cfg.RetentionBytes, Dial: s.dial, Log: s.log})
	}
	return s.openEtcd(ctx)
}

func (s *Sidecar) openEtcd(ctx context.Context) (txlog.Shared, error) {
	o, err := etcd.ParseURL(s.cfg.Store)
	if err != nil {
		return nil, err
	}
	if o.Dial, o.Log = s.dial, s.log; o.RetainBytes == 0 {
		o.RetainBytes = s.cfg.RetentionBytes
	}
	return etcd.Open(ctx, o)
}

// lockDir makes this process the only one with the owner id of the directory.
func lockDir(dir string) (*os.File, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	f, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		return nil, errors.Join(fmt.Errorf("%s is used by another sidecar: end it, or give each a directory of its own", dir), f.Close())
	}
	return f, nil
}

// ownerOf returns the owner id of a directory, which is made once. Without the directory a sidecar is a new one, and
// its old journal is adopted by another.
func ownerOf(dir string) (string, error) {
	path := filepath.Join(dir, "owner")
	data, err := os.ReadFile(path)
	owner := strings.TrimSpace(string(data))
	switch {
	case err == nil && interceptor.IsOwner(owner):
		return owner, nil
	case err == nil:
		return "", fmt.Errorf("%s holds %q, which is no owner id: restore it, or remove it to begin as a new sidecar", path, owner)
	case !errors.Is(err, fs.ErrNotExist):
		return "", err
	}
	owner = rand.Text()[:ownerChars]
	owner = strings.NewReplacer("I", "0", "L", "1", "O", "8", "U", "9").Replace(owner) // base32 is not Crockford's
	if err := os.WriteFile(path+".new", []byte(owner+"\n"), 0o600); err != nil {
		return "", err
	}
	return owner, os.Rename(path+".new", path)
}

const ownerChars = 13
