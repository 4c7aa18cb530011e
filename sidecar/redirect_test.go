package sidecar

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"strings"
	"testing"
)

func TestUpstreamsOfBytesAreChecked(t *testing.T) {
	for _, tt := range []struct{ args, want string }{
		{"service=db,listen=127.0.0.1:0,to=db:1,protocol=udp", "is not one of the values"},
		{"service=db,listen=127.0.0.1:0,to=db:1,protocol=tcp,host=db", "is for HTTP"},
		{"service=db,to=db:1", "neither listen nor host"},
	} {
		_, err := Load([]string{"--service", "a/b", "--app", "127.0.0.1:1", "--upstreams", tt.args}, nil, noHelp)
		if err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: %v, want %q", tt.args, err, tt.want)
		}
	}
	for _, mark := range []string{"0", "x", "0x100000000"} {
		if _, err := Load([]string{"--service", "a/b", "--app", "127.0.0.1:1", "--mark", mark}, nil, noHelp); err == nil || !strings.Contains(err.Error(), "is not a mark") {
			t.Errorf("mark %s: %v", mark, err)
		}
	}
}

func TestNamesOfUpstreamsBecomeAddresses(t *testing.T) {
	d := newDestinations([]Upstream{{Service: "bank/accounts", To: []string{"accounts:80", "[fd00::1]:81"}, Protocol: "http"}})
	var gone error
	d.lookUp = func(_ context.Context, host string) ([]netip.Addr, error) {
		if host == "accounts" {
			return []netip.Addr{netip.MustParseAddr("::ffff:10.0.0.1")}, gone
		}
		return net.DefaultResolver.LookupNetIP(t.Context(), "ip", host)
	}
	for range 2 { // a name that does not resolve any more keeps its address
		d.refresh(t.Context())
		for address, want := range map[string]string{"10.0.0.1:80": "bank/accounts", "[fd00::1]:81": "bank/accounts", "10.0.0.1:81": ""} {
			if got, _ := d.at(netip.MustParseAddrPort(address)); got != want {
				t.Errorf("%s is %q, want %q", address, got, want)
			}
		}
		gone = errors.New("no such host")
	}
}
