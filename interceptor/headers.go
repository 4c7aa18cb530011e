package interceptor

import (
	"encoding/hex"
	"net/url"
	"strings"
)

// The headers of the protocol; docs/reference/headers.md tells who sets and who reads each.
const (
	HeaderContext     = "tx-context"
	HeaderID          = "tx-id"
	HeaderBranch      = "tx-branch"
	HeaderOp          = "tx-op"
	HeaderAttempt     = "tx-attempt"
	HeaderHome        = "tx-home"
	HeaderStart       = "tx-start"
	HeaderStatus      = "tx-status"
	HeaderReplayed    = "tx-replayed"
	HeaderError       = "tx-error"
	HeaderIdempotency = "idempotency-key"
	headerUndo        = "tx-undo"
	headerConfirm     = "tx-confirm"
	headerCancel      = "tx-cancel"
	headerHold        = "tx-hold"
	headerBaggage     = "baggage"
	headerTraceparent = "traceparent"
)

// Words of tx-op.
const (
	OpForward = "forward"
	OpConfirm = "confirm"
	OpUndo    = "undo"
	OpQuery   = "query"
	OpDeliver = "deliver"
	OpTell    = "tell"
)

// Limits of W3C Baggage, section 3.3.2: what every implementation passes on.
const (
	baggageKey        = "tx"
	baggageMembersMax = 64
	baggageBytesMax   = 8192
)

// requestHeaders are what a request may carry of the protocol, in the order of the table.
func requestHeaders() [12]string {
	return [...]string{HeaderContext, HeaderID, HeaderBranch, HeaderOp, HeaderAttempt, HeaderHome, HeaderStart,
		headerUndo, headerConfirm, headerCancel, headerHold, HeaderStatus}
}

// strip removes every header of the protocol and our baggage member.
func strip(r Request) {
	for _, h := range requestHeaders() {
		if r.Header(h) != "" {
			r.DelHeader(h)
		}
	}
	setBaggage(r, "")
}

// stripUnsigned removes from a call of a branch what no sidecar puts on one.
func stripUnsigned(r Request) {
	for _, h := range [...]string{HeaderStart, headerUndo, headerConfirm, headerCancel, headerHold, HeaderStatus} {
		r.DelHeader(h)
	}
}

// rawContext returns the signed context as the request carries it: the header wins over the baggage member.
func rawContext(r Request) (value string, explicit bool) {
	if v := r.Header(HeaderContext); v != "" {
		return v, true
	}
	if r.Header(headerBaggage) == "" {
		return "", false
	}
	for _, line := range r.Headers(headerBaggage) {
		for member := range strings.SplitSeq(line, ",") {
			if v, ours := ownMember(member); ours {
				return v, false
			}
		}
	}
	return "", false
}

// ownMember returns the value of our baggage member, percent-decoded (some propagators encode what needs none) and
// without properties.
func ownMember(member string) (string, bool) {
	k, v, found := strings.Cut(member, "=")
	if !found || strings.TrimSpace(k) != baggageKey {
		return "", false
	}
	v, _, _ = strings.Cut(v, ";")
	v, err := url.PathUnescape(strings.TrimSpace(v))
	return v, err == nil
}

// setBaggage puts our member first, in one line with all others, or removes it if value is empty. It reports false
// and leaves the header as it is where the result would pass the limits of W3C Baggage: whoever drops members
// beyond them must not drop ours while keeping a stale one.
func setBaggage(r Request, value string) bool {
	lines := r.Headers(headerBaggage)
	if len(lines) == 0 && value == "" {
		return true
	}
	var members []string
	had := false
	for _, line := range lines {
		for member := range strings.SplitSeq(line, ",") {
			member = strings.TrimSpace(member)
			if _, ours := ownMember(member); ours {
				had = true
			} else if member != "" {
				members = append(members, member)
			}
		}
	}
	if value == "" {
		if !had {
			return true
		}
		if len(members) == 0 {
			r.DelHeader(headerBaggage)
			return true
		}
		r.SetHeader(headerBaggage, strings.Join(members, ","))
		return true
	}
	merged := strings.Join(append([]string{baggageKey + "=" + value}, members...), ",")
	if len(members)+1 > baggageMembersMax || len(merged) > baggageBytesMax {
		if had {
			r.SetHeader(headerBaggage, strings.Join(members, ","))
		}
		return false
	}
	r.SetHeader(headerBaggage, merged)
	return true
}

// traceKeys returns the keys by which calls of the application are joined to the request that it serves, strongest
// first.
func traceKeys(r Request) []string {
	var keys []string
	if id := traceID(r.Header(headerTraceparent)); id != "" {
		keys = append(keys, "trace:"+id)
	}
	if b3, _, _ := strings.Cut(r.Header("b3"), "-"); isHex(b3) {
		keys = append(keys, "b3:"+b3)
	} else if b3 := r.Header("x-b3-traceid"); isHex(b3) {
		keys = append(keys, "b3:"+b3)
	}
	if id := r.Header("x-request-id"); id != "" && len(id) <= 128 {
		keys = append(keys, "request:"+id)
	}
	return keys
}

// traceID returns the trace-id of a W3C traceparent, `00-<32 hex>-<16 hex>-<2 hex>`, or "".
func traceID(traceparent string) string {
	if len(traceparent) < 55 || traceparent[2] != '-' || traceparent[35] != '-' {
		return ""
	}
	id := traceparent[3:35]
	if !isHex(id) || strings.Count(id, "0") == len(id) {
		return ""
	}
	return id
}

func isHex(s string) bool {
	if len(s) != 16 && len(s) != 32 {
		return false
	}
	_, err := hex.DecodeString(s)
	return err == nil
}

// newTraceparent makes a sampled traceparent out of 24 random bytes.
func newTraceparent(random [24]byte) string {
	return "00-" + hex.EncodeToString(random[:16]) + "-" + hex.EncodeToString(random[16:]) + "-01"
}
