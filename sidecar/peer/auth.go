package peer

import (
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"time"
)

// Errors of Auth. They say why a message is not believed.
var (
	ErrForged   = errors.New("peer: not signed with the secret of this mesh")
	ErrStale    = errors.New("peer: signed too long ago, or the clocks differ")
	ErrReplayed = errors.New("peer: seen before")
	ErrUnsigned = errors.New("peer: not signed at all")
	ErrLarge    = errors.New("peer: too large for a sender that has proved nothing yet")
)

const (
	headerTime  = "Txmesh-Time"
	headerNonce = "Txmesh-Nonce"
	headerMAC   = "Txmesh-Mac"
	headerHead  = "Txmesh-Head"

	ageMax = 30 * time.Second
)

// Auth signs and checks messages between sidecars that share a secret. It is safe for many goroutines.
type Auth struct {
	secret []byte
	now    func() time.Time

	mu     sync.Mutex // guards all below
	turned time.Time
	recent map[string]bool // nonces seen since turned
	older  map[string]bool // those of the period before
}

// NewAuth returns the Auth of a mesh. The secret has at least 16 bytes.
func NewAuth(secret []byte, now func() time.Time) (*Auth, error) {
	if len(secret) < 16 {
		return nil, errors.New("mesh secret has fewer than 16 bytes: make one with `openssl rand -hex 32`")
	}
	return &Auth{secret: append([]byte("txmesh peer "), secret...), now: now, recent: map[string]bool{}}, nil
}

// Sign adds the signature of a request to its header and returns the nonce, which the reply is bound to.
func (a *Auth) Sign(h http.Header, method, path string, body []byte) string {
	raw := make([]byte, 16)
	rand.Read(raw) // never fails
	nonce := base64.RawURLEncoding.EncodeToString(raw)
	at := strconv.FormatInt(a.now().UnixMilli(), 10)
	h.Set(headerTime, at)
	h.Set(headerNonce, nonce)
	h.Set(headerMAC, a.mac(body, "request", method, path, at, nonce))
	h.Set(headerHead, a.head(method, path, at, nonce, int64(len(body))))
	return nonce
}

// head signs all but the body, so that its sender is known before the body is read.
func (a *Auth) head(method, path, at, nonce string, length int64) string {
	return a.mac(nil, "head", method, path, at, nonce, strconv.FormatInt(length, 10))
}

// CheckHead believes the head of a request whose body is not read yet, or says why not: ErrForged, which one that is not
// signed is too, as releases before this one send it; ErrStale or ErrReplayed. A head is believed once. The body may
// still be another's: CheckBody tells.
func (a *Auth) CheckHead(h http.Header, method, path string, length int64) error {
	want := a.head(method, path, h.Get(headerTime), h.Get(headerNonce), length)
	if !hmac.Equal([]byte(want), []byte(h.Get(headerHead))) {
		return ErrForged
	}
	if err := a.fresh(h.Get(headerTime)); err != nil {
		return err
	}
	return a.remember(h.Get(headerNonce))
}

// CheckBody believes a request whose head was believed, or says why not: ErrForged, or ErrStale if the body took too long.
func (a *Auth) CheckBody(h http.Header, method, path string, body []byte) error {
	at := h.Get(headerTime)
	want := a.mac(body, "request", method, path, at, h.Get(headerNonce))
	if !hmac.Equal([]byte(want), []byte(h.Get(headerMAC))) {
		return ErrForged
	}
	return a.fresh(at)
}

// Check believes a request without a signed head, or says why not: ErrForged, ErrStale or ErrReplayed.
func (a *Auth) Check(h http.Header, method, path string, body []byte) error {
	if err := a.CheckBody(h, method, path, body); err != nil {
		return err
	}
	return a.remember(h.Get(headerNonce))
}

// fresh refuses a time, which was signed, that is too far from this sidecar's clock.
func (a *Auth) fresh(at string) error {
	ms, err := strconv.ParseInt(at, 10, 64)
	if err != nil {
		return ErrForged
	}
	if age := a.now().Sub(time.UnixMilli(ms)); age > ageMax || age < -ageMax {
		return fmt.Errorf("%w: signed %v before this sidecar's clock", ErrStale, age.Round(time.Millisecond))
	}
	return nil
}

// remember refuses a nonce that was seen while its signature can still be fresh: a signature is believed for
// twice ageMax at most, because clocks may differ in both directions.
func (a *Auth) remember(nonce string) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if now := a.now(); now.Sub(a.turned) > 2*ageMax {
		a.older, a.recent, a.turned = a.recent, map[string]bool{}, now
	}
	if a.recent[nonce] || a.older[nonce] {
		return ErrReplayed
	}
	a.recent[nonce] = true
	return nil
}

// SignReply adds the signature of a reply to the request with this nonce.
func (a *Auth) SignReply(h http.Header, nonce string, status int, body []byte) {
	h.Set(headerMAC, a.mac(body, "reply", nonce, strconv.Itoa(status)))
}

// CheckReply believes a reply, or returns ErrForged.
func (a *Auth) CheckReply(h http.Header, nonce string, status int, body []byte) error {
	if !hmac.Equal([]byte(a.mac(body, "reply", nonce, strconv.Itoa(status))), []byte(h.Get(headerMAC))) {
		return ErrForged
	}
	return nil
}

// mac signs the parts, which cannot hold line breaks because HTTP parsed them, and the body behind its length.
func (a *Auth) mac(body []byte, parts ...string) string {
	m := hmac.New(sha256.New, a.secret)
	m.Write([]byte(strings.Join(parts, "\n") + "\n" + strconv.Itoa(len(body)) + "\n"))
	m.Write(body)
	return base64.RawURLEncoding.EncodeToString(m.Sum(nil))
}
