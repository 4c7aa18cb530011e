package identity

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"strings"
)

// By says who ended a handshake: this side, or the other one.
type By string

// The two sides of a handshake.
const (
	Self  By = "self"
	Other By = "other"
)

// Reason is why a handshake was ended: a closed set.
type Reason string

// The reasons. Broken is a handshake that ended without a word, as when the other side went away.
const (
	Expired       Reason = "expired"
	Foreign       Reason = "foreign"
	NoCertificate Reason = "no_certificate"
	NotAuthorised Reason = "not_authorised"
	Plain         Reason = "plain"
	Broken        Reason = "broken"
)

// Reasons lists all reasons.
func Reasons() []Reason {
	return []Reason{Expired, Foreign, NoCertificate, NotAuthorised, Plain, Broken}
}

// Refusal is the error of a handshake that was ended for a reason.
type Refusal struct {
	By     By
	Reason Reason
	Err    error
}

// Error says who refused what, and what to do about it.
func (r *Refusal) Error() string {
	if r.By == Other {
		return fmt.Sprintf("tls: the other side refused this sidecar: %s (%v); %s", r.Reason.words(), r.Err, r.remedy())
	}
	return fmt.Sprintf("tls: the other side is refused: %s (%v); %s", r.Reason.words(), r.Err, r.remedy())
}

// Unwrap returns what crypto/tls said.
func (r *Refusal) Unwrap() error { return r.Err }

func (r Reason) words() string {
	switch r {
	case Expired:
		return "the certificate has expired or is not valid yet"
	case Foreign:
		return "the certificate is of another mesh"
	case NoCertificate:
		return "no certificate was shown"
	case NotAuthorised:
		return "the certificate names nobody of the trust domain"
	case Plain:
		return "one side speaks plain HTTP, the other TLS"
	case Broken:
		return "the handshake broke off"
	default:
		panic("identity: reason without words: " + string(r))
	}
}

// remedy names the side that must change, as seen from this one.
func (r *Refusal) remedy() string {
	whose := "the other side's"
	if r.By == Other {
		whose = "this sidecar's"
	}
	switch r.Reason {
	case Expired:
		return "look at " + whose + " clock and at why its certificate is not renewed"
	case Foreign:
		return "give both sides certificates under the same roots and the same trust-domain"
	case NoCertificate:
		return "set identity at the side that shows none"
	case NotAuthorised:
		return "give both sides the same trust-domain; " + whose + " certificate needs one SPIFFE id of it"
	case Plain:
		return "set identity on both sides, or on none"
	case Broken:
		return "see the log of the other side"
	default:
		panic("identity: reason without remedy: " + string(r.Reason))
	}
}

// refusalOf reads what crypto/tls says of a handshake. Alerts have no type there, only a text.
func refusalOf(err error) *Refusal {
	if r, ok := errors.AsType[*Refusal](err); ok {
		return r
	}
	if op, ok := errors.AsType[*net.OpError](err); ok && op.Op == "remote error" {
		return &Refusal{By: Other, Reason: alertReason(op.Err.Error()), Err: op.Err}
	}
	r := &Refusal{By: Self, Reason: Broken, Err: err}
	invalid, isInvalid := errors.AsType[x509.CertificateInvalidError](err)
	_, isUnknown := errors.AsType[x509.UnknownAuthorityError](err)
	_, isPlain := errors.AsType[tls.RecordHeaderError](err)
	_, isChain := errors.AsType[*tls.CertificateVerificationError](err)
	switch {
	case isPlain:
		r.Reason = Plain
	case isInvalid && invalid.Reason == x509.Expired:
		r.Reason = Expired
	case isUnknown || errors.Is(err, errForeign):
		r.Reason = Foreign
	case strings.Contains(err.Error(), "didn't provide a certificate"):
		r.Reason = NoCertificate
	case isChain || isInvalid || strings.Contains(err.Error(), "SPIFFE") || strings.Contains(err.Error(), "x509svid"):
		r.Reason = NotAuthorised
	}
	return r
}

func alertReason(text string) Reason {
	for _, a := range []struct {
		text   string
		reason Reason
	}{
		{"expired certificate", Expired}, {"unknown certificate authority", Foreign}, {"certificate required", NoCertificate},
		{"bad certificate", NotAuthorised}, {"access denied", NotAuthorised}, {"unknown certificate", NotAuthorised},
	} {
		if strings.Contains(text, a.text) {
			return a.reason
		}
	}
	return Broken
}

// refused counts and logs a handshake that was ended, and returns its error.
func (i *Identity) refused(side string, remote net.Addr, err error) error {
	r := refusalOf(err)
	i.opt.Refused(r.By, r.Reason)
	i.opt.Log.Warn("tls refused", "as", side, "from", remote.String(), "by", string(r.By), "reason", string(r.Reason), "error", r)
	return r
}
