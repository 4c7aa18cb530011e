package redirect

import (
	"net/netip"
	"testing"
)

func TestFirstBytes(t *testing.T) {
	for _, tt := range []struct {
		name, first string
		want        Kind
	}{
		{"nothing yet", "", Unclear},
		{"half a method", "PO", Unclear},
		{"a method", "POST ", Unclear},
		{"a request", "POST /", HTTP},
		{"a whole request", "GET /x HTTP/1.1\r\nHost: a\r\n\r\n", HTTP},
		{"a method with a hyphen", "M-SEARCH * HTTP/1.1\r\n", HTTP},
		{"small letters", "get / HTTP/1.1\r\n", HTTP},
		{"the absolute form", "GET http://a/ HTTP/1.1\r\n", HTTP},
		{"half of that", "GET htt", Unclear},
		{"the preface of HTTP/2", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", HTTP},
		{"half of the preface", "PRI", Unclear},
		{"an empty line before", "\r\nGET / HTTP/1.1\r\n", HTTP},
		{"empty lines only", "\r\n\r\n", Unclear},
		{"too many of them", "\r\n\r\n\r\n\r\n\r\n\r\n\r\n\r\n\r\n\r\n\r\n\r\n\r\n\r\n\r\n\r\n\r\n", Other},
		{"a ClientHello", "\x16\x03\x01\x02\x00", TLS},
		{"ssh", "SSH-2.0-OpenSSH_9.2 Debian\r\n", Other},
		{"irc", "NICK somebody\r\n", Other},
		{"redis", "*1\r\n$4\r\nPING\r\n", Other},
		{"redis by hand", "PING\r\n", Other},
		{"postgres", "\x00\x00\x00\x08\x04\xd2\x16\x2f", Other},
		{"a space first", " GET /", Other},
		{"a very long word", "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA", Other},
		{"another scheme", "GET hxtp://a/ HTTP/1.1\r\n", Other},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if got := Sniff([]byte(tt.first)); got != tt.want {
				t.Errorf("Sniff(%q) = %d, want %d", tt.first, got, tt.want)
			}
		})
	}
}

func TestGuardFindsBothEnds(t *testing.T) {
	e := ends{netip.MustParseAddrPort("127.0.0.1:4000"), netip.MustParseAddrPort("127.0.0.1:80")}
	for name, order := range map[string][2]side{"dialled first": {dialled, accepted}, "accepted first": {accepted, dialled}} {
		t.Run(name, func(t *testing.T) {
			var g Guard
			other := ends{e.server, e.client}
			for range 2 {
				if g.notice(e, order[0]) {
					t.Error("one end is no loop")
				}
			}
			if g.notice(other, order[1]) {
				t.Error("the way back is no loop")
			}
			if !g.notice(e, order[1]) {
				t.Error("both ends are one")
			}
		})
	}
}
