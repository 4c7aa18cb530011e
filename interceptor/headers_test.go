package interceptor

import (
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestBaggageMember(t *testing.T) {
	many := func(n int) string {
		var m []string
		for i := range n {
			m = append(m, fmt.Sprintf("k%d=v", i))
		}
		return strings.Join(m, ",")
	}
	for _, tt := range []struct {
		name  string
		lines []string
		value string
		want  []string
		fits  bool
	}{
		{"alone", nil, "1.a", []string{"tx=1.a"}, true},
		{"first of several", []string{"user=alice, a=b;p=q"}, "1.a", []string{"tx=1.a,user=alice,a=b;p=q"}, true},
		{"several lines become one", []string{"user=alice", "c=d"}, "1.a", []string{"tx=1.a,user=alice,c=d"}, true},
		{"old one is replaced", []string{"user=alice,tx=1.old"}, "1.a", []string{"tx=1.a,user=alice"}, true},
		{"twice is once", []string{"tx=1.old,tx=1.older"}, "1.a", []string{"tx=1.a"}, true},
		{"members of similar names stay", []string{"TX=1,txa=2"}, "1.a", []string{"tx=1.a,TX=1,txa=2"}, true},
		{"empty members go", []string{",,user=alice,"}, "1.a", []string{"tx=1.a,user=alice"}, true},
		{"sixty-four members", []string{many(63)}, "1.a", []string{"tx=1.a," + many(63)}, true},
		{"sixty-five members", []string{many(64)}, "1.a", []string{many(64)}, false},
		{"8,192 bytes", []string{"p=" + strings.Repeat("x", 8192-9)}, "1.a", []string{"tx=1.a,p=" + strings.Repeat("x", 8192-9)}, true},
		{"8,193 bytes", []string{"p=" + strings.Repeat("x", 8193-9)}, "1.a", []string{"p=" + strings.Repeat("x", 8193-9)}, false},
		{"no stale one beyond the limit", []string{many(64) + ",tx=1.old"}, "1.a", []string{many(64)}, false},
		{"removed", []string{"user=alice,tx=1.old"}, "", []string{"user=alice"}, true},
		{"removed alone", []string{"tx=1.old"}, "", nil, true},
		{"nothing to remove leaves bytes alone", []string{"a=b ,  c=d"}, "", []string{"a=b ,  c=d"}, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r := newRequest("GET", "http://h/")
			for _, l := range tt.lines {
				r.header = append(r.header, [2]string{"Baggage", l})
			}
			fits := setBaggage(r, tt.value)
			if diff := cmp.Diff(r.Headers("baggage"), tt.want); diff != "" || fits != tt.fits {
				t.Errorf("setBaggage = %v (want %v), headers (got, want):\n%s", fits, tt.fits, diff)
			}
		})
	}
}

func TestContextIsReadBack(t *testing.T) {
	for _, tt := range []struct {
		name     string
		header   []string
		want     string
		explicit bool
	}{
		{"header", []string{"tx-context", "1.h"}, "1.h", true},
		{"header goes before baggage", []string{"baggage", "tx=1.b", "tx-context", "1.h"}, "1.h", true},
		{"baggage", []string{"baggage", "user=alice,tx=1.b"}, "1.b", false},
		{"second line", []string{"baggage", "user=alice", "baggage", "tx=1.b"}, "1.b", false},
		{"percent-encoded by a propagator", []string{"baggage", "tx=1%2Eb"}, "1.b", false},
		{"with a property", []string{"baggage", "tx=1.b;ttl=30"}, "1.b", false},
		{"bad neighbour", []string{"baggage", "bad key=1,tx=1.b"}, "1.b", false},
		{"bad escape", []string{"baggage", "tx=1%zz"}, "", false},
		{"none", []string{"baggage", "user=alice"}, "", false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got, explicit := rawContext(newRequest("GET", "http://h/", tt.header...))
			if got != tt.want || explicit != tt.explicit {
				t.Errorf("rawContext = %q, %v, want %q, %v", got, explicit, tt.want, tt.explicit)
			}
		})
	}
}

func TestTraceKeys(t *testing.T) {
	const id = "4bf92f3577b34da6a3ce929d0e0e4736"
	for _, tt := range []struct {
		name   string
		header []string
		want   []string
	}{
		{"traceparent", []string{"traceparent", "00-" + id + "-00f067aa0ba902b7-01"}, []string{"trace:" + id}},
		{"later version with more fields", []string{"traceparent", "cc-" + id + "-00f067aa0ba902b7-01-what"}, []string{"trace:" + id}},
		{"zero trace-id", []string{"traceparent", "00-" + strings.Repeat("0", 32) + "-00f067aa0ba902b7-01"}, nil},
		{"too short", []string{"traceparent", "00-" + id}, nil},
		{"single b3", []string{"b3", id + "-00f067aa0ba902b7-1"}, []string{"b3:" + id}},
		{"b3 without ids", []string{"b3", "0"}, nil},
		{"x-b3-traceid of 64 bits", []string{"x-b3-traceid", "a3ce929d0e0e4736"}, []string{"b3:a3ce929d0e0e4736"}},
		{"all, strongest first", []string{"x-request-id", "r-1", "b3", id + "-1", "traceparent", "00-" + id + "-00f067aa0ba902b7-01"},
			[]string{"trace:" + id, "b3:" + id, "request:r-1"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if diff := cmp.Diff(traceKeys(newRequest("GET", "http://h/", tt.header...)), tt.want); diff != "" {
				t.Errorf("traceKeys (got, want):\n%s", diff)
			}
		})
	}
}
