package interceptor

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"hash"
	"strconv"
	"strings"
	"sync"
	"time"

	"txmesh/txn"
)

// Errors of Keys.Verify.
var (
	ErrForged  = errors.New("the transaction context is not signed by this mesh")
	ErrExpired = errors.New("the transaction context has expired")
)

const (
	contextVersion = "1"
	noParent       = "-"
	macBytes       = 16
)

// Context is what travels with the calls of a transaction: its id, the branch that is being served, and the time
// after which it joins nothing any more.
type Context struct {
	ID      txn.ID
	Parent  string // number of the branch served; empty: the root request
	Expires time.Time
}

// expiry is when the context expires as it travels: in whole seconds, rounded up so that it is never early at a
// peer. It is the same wherever the context was learned.
func (c Context) expiry() time.Time { return time.Unix(c.Expires.Add(time.Second-1).Unix(), 0).UTC() }

// Keys signs and verifies contexts with the key that all sidecars of a mesh share.
type Keys struct {
	macs sync.Pool // of *macer: to make one costs as much as a context
}

// macer makes signatures without leaving garbage.
type macer struct {
	hash hash.Hash
	in   []byte
	sum  [sha256.Size]byte
}

// NewKeys returns the keys made from a shared secret of at least 16 bytes.
func NewKeys(secret []byte) (*Keys, error) {
	if len(secret) < 16 {
		return nil, errors.New("mesh secret has fewer than 16 bytes: make one with `openssl rand -hex 32`")
	}
	key := append([]byte("txmesh context "), secret...)
	return &Keys{macs: sync.Pool{New: func() any { return &macer{hash: hmac.New(sha256.New, key)} }}}, nil
}

// Sign returns the context in its wire form, `1.<owner>.<ulid>.<parent>.<expiry base36>.<mac>`: at most 96 bytes,
// all of them letters that no baggage implementation escapes.
func (k *Keys) Sign(c Context) string {
	parent := c.Parent
	if parent == "" {
		parent = noParent
	} else if n, err := strconv.ParseUint(parent, 10, 32); err == nil {
		parent = strconv.FormatUint(n, 36)
	}
	b := make([]byte, 0, contextMax)
	for _, part := range []string{contextVersion, string(c.ID), parent} {
		b = append(append(b, part...), '.')
	}
	b = strconv.AppendInt(b, c.expiry().Unix(), 36)
	signed := len(b)
	return string(appendMAC(k, append(b, '.'), b[:signed]))
}

// contextMax is how long a context may be on the wire.
const contextMax = 128

// Verify returns the context that Sign wrote, ErrForged or ErrExpired. An expired one is returned as well.
func (k *Keys) Verify(s string, now time.Time) (Context, error) {
	cut := strings.LastIndexByte(s, '.')
	if cut < 0 || len(s) > contextMax {
		return Context{}, ErrForged
	}
	var given, own [contextMax]byte
	if !hmac.Equal(append(given[:0], s[cut+1:]...), appendMAC(k, own[:0], s[:cut])) {
		return Context{}, ErrForged
	}
	var f [5]string
	rest := s[:cut]
	for i := range len(f) - 1 {
		var found bool
		if f[i], rest, found = strings.Cut(rest, "."); !found {
			return Context{}, ErrForged
		}
	}
	if f[4] = rest; f[0] != contextVersion || strings.Contains(rest, ".") {
		return Context{}, ErrForged
	}
	expiry, err := strconv.ParseInt(f[4], 36, 64)
	if err != nil {
		return Context{}, ErrForged
	}
	c := Context{ID: txn.ID(f[1] + "." + f[2]), Expires: time.Unix(expiry, 0)}
	if f[3] != noParent {
		n, err := strconv.ParseUint(f[3], 36, 32)
		if err != nil {
			return Context{}, ErrForged
		}
		c.Parent = strconv.FormatUint(n, 10)
	}
	if !now.Before(c.Expires) {
		return c, ErrExpired
	}
	return c, nil
}

// appendMAC appends the signature of what is signed.
func appendMAC[T string | []byte](k *Keys, dst []byte, signed T) []byte {
	m := k.macs.Get().(*macer)
	defer k.macs.Put(m)
	m.in = append(m.in[:0], signed...)
	m.hash.Reset()
	m.hash.Write(m.in)
	return base64.RawURLEncoding.AppendEncode(dst, m.hash.Sum(m.sum[:0])[:macBytes])
}

// OwnerOf returns the owner part of a native id, or "".
func OwnerOf(id txn.ID) string {
	owner, _, found := strings.Cut(string(id), ".")
	if !found {
		return ""
	}
	return owner
}

// IsOwner reports whether text has the form of an owner's id: 13 characters of Crockford's base32. Ids that outsiders
// choose may have a dot as well.
func IsOwner(text string) bool {
	return len(text) == 13 && strings.Trim(text, "0123456789ABCDEFGHJKMNPQRSTVWXYZ") == ""
}

// BranchName is the name of a branch on the wire, `<id>-<n>`.
func BranchName(id txn.ID, n string) string { return string(id) + "-" + n }

// SplitBranchName undoes BranchName.
func SplitBranchName(s string) (txn.ID, string, bool) {
	cut := strings.LastIndexByte(s, '-')
	if cut <= 0 || cut == len(s)-1 {
		return "", "", false
	}
	return txn.ID(s[:cut]), s[cut+1:], true
}
