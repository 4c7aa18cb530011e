//go:build linux

package nft

import (
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

func all() Rules {
	return Rules{Outbound: 15802, Inbound: 15807, UIDs: []uint32{7337, 7338}, Mark: 0x1ca9, ExcludeOutbound: []uint16{2379},
		ExcludeInbound: []uint16{15808}, ExcludeNetworks: []netip.Prefix{netip.MustParsePrefix("169.254.1.2/16"), netip.MustParsePrefix("fe80::/10")}}
}

func TestScriptIsWhatIsWritten(t *testing.T) {
	got, err := all().Script()
	if err != nil {
		t.Fatal(err)
	}
	want := `table inet txmesh
delete table inet txmesh
table inet txmesh {
	chain outbound {
		type nat hook output priority -100; policy accept;
		meta skuid 7337 return
		meta skuid 7338 return
		meta mark 0x00001ca9 return
		oifname "lo" return
		ip daddr 169.254.0.0/16 return
		ip6 daddr fe80::/10 return
		meta l4proto tcp tcp dport 2379 return
		meta l4proto tcp redirect to :15802
	}
	chain inbound {
		type nat hook prerouting priority -100; policy accept;
		iifname "lo" return
		fib daddr type != local return
		meta l4proto tcp tcp dport 15808 return
		meta l4proto tcp redirect to :15807
	}
}
`
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

func TestRulesThatWouldLoopAreRefused(t *testing.T) {
	for _, tt := range []struct {
		rules Rules
		want  string
	}{
		{Rules{}, "nothing would be redirected"},
		{Rules{Outbound: 1}, "its own connections would come back"},
	} {
		if _, err := tt.rules.Script(); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%+v: %v, want %q", tt.rules, err, tt.want)
		}
	}
}

// TestNetlinkDoesWhatTheScriptSays compares what the kernel has after both, in a namespace of its own, and after a repeat.
func TestNetlinkDoesWhatTheScriptSays(t *testing.T) {
	nft, err := exec.LookPath("nft")
	if os.Getuid() != 0 || err != nil {
		t.Skip("needs root, and the program nft to compare with")
	}
	runtime.LockOSThread() // for ever: the namespace ends with the thread
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		t.Skipf("needs network namespaces: %v", err)
	}
	listed := func() string {
		out, err := exec.Command(nft, "list", "ruleset").CombinedOutput()
		if err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		return strings.ReplaceAll(string(out), "priority dstnat", "priority -100")
	}
	once := func() string {
		if err := all().Apply(); err != nil {
			t.Fatal(err)
		}
		return listed()
	}
	byNetlink := once()
	if diff := cmp.Diff(byNetlink, once()); diff != "" {
		t.Errorf("twice is not once:\n%s", diff)
	}
	script, err := all().Script()
	if err != nil {
		t.Fatal(err)
	}
	c := exec.Command(nft, "-f", "-")
	c.Stdin = strings.NewReader(script)
	if out, err := c.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	if diff := cmp.Diff(listed(), byNetlink); diff != "" {
		t.Errorf("script and netlink differ:\n%s", diff)
	}
	for range 2 {
		if err := Clean(); err != nil {
			t.Fatal(err)
		}
		if left := listed(); left != "" {
			t.Errorf("left: %s", left)
		}
	}
}
