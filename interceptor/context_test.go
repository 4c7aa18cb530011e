package interceptor

import (
	"errors"
	"strings"
	"testing"
	"time"

	"txmesh/txn"
)

const someID = txn.ID("0K3V9X2ABCDEF.01JD3ZK9F0N8M7P6Q5R4S3T2V1")

func someKeys(t testing.TB) *Keys {
	t.Helper()
	k, err := NewKeys([]byte("a secret of sixteen bytes or more"))
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func TestContextSurvivesTheWire(t *testing.T) {
	k, now := someKeys(t), time.Unix(1_700_000_000, 0)
	for _, parent := range []string{"", "0", "1", "35", "36", "4294967295"} {
		c := Context{ID: someID, Parent: parent, Expires: now.Add(time.Minute)}
		s := k.Sign(c)
		if len(s) > 96 || strings.Trim(s, "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._-") != "" {
			t.Errorf("Sign(%+v) = %q: longer than 96 bytes or with letters that baggage escapes", c, s)
		}
		got, err := k.Verify(s, now)
		if err != nil || got != c {
			t.Errorf("Verify(%q) = %+v, %v, want %+v", s, got, err, c)
		}
	}
}

func TestContextThatJoinsNothing(t *testing.T) {
	k, now := someKeys(t), time.Unix(1_700_000_000, 0)
	other, err := NewKeys([]byte("another secret of sixteen bytes"))
	if err != nil {
		t.Fatal(err)
	}
	c := Context{ID: someID, Parent: "2", Expires: now.Add(time.Minute)}
	good := k.Sign(c)
	for _, tt := range []struct {
		name, in string
		at       time.Time
		want     error
	}{
		{"empty", "", now, ErrForged},
		{"id only", string(someID), now, ErrForged},
		{"other mesh", other.Sign(c), now, ErrForged},
		{"other parent", strings.Replace(good, ".2.", ".3.", 1), now, ErrForged},
		{"other version", "2" + good[1:], now, ErrForged},
		{"cut", good[:len(good)-1], now, ErrForged},
		{"longer", good + "A", now, ErrForged},
		{"last valid moment", good, now.Add(time.Minute - 1), nil},
		{"expired", good, now.Add(time.Minute), ErrExpired},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if _, err := k.Verify(tt.in, tt.at); !errors.Is(err, tt.want) {
				t.Errorf("Verify(%q) = %v, want %v", tt.in, err, tt.want)
			}
		})
	}
}

func TestShortSecretIsRefused(t *testing.T) {
	if _, err := NewKeys([]byte("short")); err == nil {
		t.Error("NewKeys of five bytes succeeded")
	}
}

func FuzzVerify(f *testing.F) {
	k, now := someKeys(f), time.Unix(1_700_000_000, 0)
	good := k.Sign(Context{ID: someID, Parent: "7", Expires: now.Add(time.Hour)})
	f.Add(good)
	f.Add("1....")
	f.Fuzz(func(t *testing.T, s string) {
		if c, err := k.Verify(s, now); err == nil && k.Sign(c) != s {
			t.Errorf("Verify accepted %q, which Sign would write as %q", s, k.Sign(c))
		}
	})
}
