package sidecar

import (
	"net"
	"net/netip"
	"testing"
)

func TestTrustedGateways(t *testing.T) {
	trusted := trusts([]netip.Prefix{netip.MustParsePrefix("10.1.0.0/16"), netip.MustParsePrefix("fe80::/64"), netip.MustParsePrefix("2001:db8::7/128")})
	for remote, want := range map[string]bool{"10.1.2.3:4": true, "10.2.0.1:4": false, "[::ffff:10.1.2.3]:4": true, "[fe80::1%eth0]:4": true,
		"[2001:db8::7]:1": true, "[2001:db8::8]:1": false} {
		at, err := net.ResolveTCPAddr("tcp", remote)
		if err != nil {
			t.Fatal(err)
		}
		if got := trusted(at); got != want {
			t.Errorf("%s is trusted: %v, want %v", remote, got, want)
		}
	}
	if trusted(&net.UnixAddr{Name: "@x"}) {
		t.Error("a sender without an address is trusted")
	}
}

// tx-start counts from a gateway that the configuration names, and from nobody else.
func TestStartByATrustedGateway(t *testing.T) {
	for networks, began := range map[string]bool{"": false, "192.0.2.0/24": false, "192.0.2.0/24, 127.0.0.1": true} {
		var p problems
		b := newBank(t, func(c *Config) { c.TrustedGateways = p.networks("trusted-gateways", networks) })
		if len(p.list) > 0 {
			t.Fatal(p.sorted())
		}
		res, _ := call(t, "POST", "http://"+b.at.Inbound+"/elsewhere", "{}", "tx-start", "bank/transfer")
		if got := res.Header.Get("tx-status") == "committed"; got != began || res.StatusCode != 201 {
			t.Errorf("trusted %q: answered %d, began a transaction: %v, want %v", networks, res.StatusCode, got, began)
		}
		if got := b.transfers.headers[0].Get("tx-start"); got != "" {
			t.Errorf("trusted %q: the application gets tx-start: %s", networks, got)
		}
	}
}
