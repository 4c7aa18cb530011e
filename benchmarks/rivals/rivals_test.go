package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestMedian(t *testing.T) {
	for _, tt := range []struct {
		in   []float64
		want float64
	}{{nil, 0}, {[]float64{3}, 3}, {[]float64{9, 1, 4}, 4}, {[]float64{4, 1, 9, 2}, 3}} {
		if got := median(tt.in); got != tt.want {
			t.Errorf("median(%v) = %g, want %g", tt.in, got, tt.want)
		}
	}
}

// twoRounds has a machine that was three times as fast in the second round.
func twoRounds(c cell) *bench {
	b := &bench{}
	for round, speed := range []float64{1, 3} {
		for name, rate := range map[string]float64{untagged: 900, nginx: 1000, envoy: 500, minimal: 950, tagged: 300, direct: 4000} {
			b.samples = append(b.samples, sample{cell: c, Rival: name, Round: round, Throughput: rate * speed, P99: 1000 / speed})
		}
	}
	return b
}

func TestRatiosAreOfOneRound(t *testing.T) {
	c := cell{Protocol: http1, Body: 1 << 10, Conns: 32}
	b := twoRounds(c)
	b.samples = append(b.samples, sample{cell: c, Rival: nginx, Round: 2, Throughput: 1}) // and txmesh failed
	if diff := cmp.Diff([]float64{0.9, 0.9}, b.ratios(c, untagged, nginx, throughput)); diff != "" {
		t.Errorf("ratios (-want +got):\n%s", diff)
	}
}

func TestAcceptanceSaysWhatWasReached(t *testing.T) {
	b := twoRounds(cell{Protocol: http1, Body: 1 << 10, Conns: 32})
	b.Quick = true
	want := strings.TrimSpace(`
untagged HTTP/1.1, 1 KiB, 32 connections: calls/s >= 1.5 x Envoy: got 1.80 (1.80 to 1.80): yes
untagged HTTP/1.1, 1 KiB, 32 connections: calls/s >= 1.0 x nginx: got 0.90 (0.90 to 0.90): no
untagged HTTP/1.1, 1 KiB, 32 connections: calls/s >= 0.9 x minimal fasthttp proxy: got 0.95 (0.95 to 0.95): yes
untagged HTTP/1.1, 1 KiB, 32 connections: p99 <= 1.2 x nginx, closed loop: got 1.00 (1.00 to 1.00): yes
untagged HTTP/1.1, 1 KiB, 32 connections: p99 <= 1.2 x nginx, open loop: not measured: no
untagged gRPC unary, 1 KiB, 32 connections: calls/s >= 1.0 x Envoy: not measured: no
tagged HTTP/1.1, 1 KiB, 256 connections: calls/s >= 0.4 x untagged: not measured by bench-quick; 0.33 (0.33 to 0.33) at 32 connections`)
	if diff := cmp.Diff(want, strings.Join(b.acceptance(), "\n")); diff != "" {
		t.Errorf("acceptance (-want +got):\n%s", diff)
	}
	many := cell{Protocol: http1, Body: 1 << 10, Conns: 256}
	b = twoRounds(many)
	if got, want := b.acceptance()[6], "tagged HTTP/1.1, 1 KiB, 256 connections: calls/s >= 0.4 x untagged: got 0.33 (0.33 to 0.33): no"; got != want {
		t.Errorf("acceptance: %s, want %s", got, want)
	}
}

// An open loop is below what the slowest can, and tagged calls below what they can.
func TestOpenRateIsHalfOfTheSlowest(t *testing.T) {
	c := cell{Protocol: http1, Body: 1 << 10, Conns: 32}
	b := twoRounds(c)
	b.served = map[protocol][]rival{}
	for _, name := range []string{direct, minimal, nginx, envoy, untagged, tagged} {
		b.served[http1] = append(b.served[http1], rival{name: name})
	}
	c.Open = true
	got := map[string]float64{}
	for _, r := range b.served[http1] {
		got[r.name] = b.openRate(c, r.name)
	}
	// Envoy is the slowest: 500 and 1500; tagged: 300 and 900.
	want := map[string]float64{direct: 500, minimal: 500, nginx: 500, envoy: 500, untagged: 500, tagged: 300}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("rates (-want +got):\n%s", diff)
	}
}

func TestOrderRotatesOverAllPlaces(t *testing.T) {
	rs := []rival{{name: "a"}, {name: "b"}, {name: "c"}}
	var got []string
	for round := range 4 {
		order := ""
		for _, r := range rotated(rs, round) {
			order += r.name
		}
		got = append(got, order)
	}
	if diff := cmp.Diff([]string{"abc", "bca", "cab", "abc"}, got); diff != "" {
		t.Errorf("orders (-want +got):\n%s", diff)
	}
}

func TestTurnsFitTheBudget(t *testing.T) {
	p := plan{overhead: 700 * time.Millisecond}
	p.share(24*time.Minute, 300)
	if all := 300 * (p.overhead + p.warm + p.window); all > 24*time.Minute || all < 23*time.Minute {
		t.Errorf("300 turns with %v and %v take %v of 24m", p.warm, p.window, all)
	}
	p.share(time.Second, 300)
	if p.warm != warmMin || p.window != windowMin {
		t.Errorf("turns of %v and %v, want %v and %v at least", p.warm, p.window, warmMin, windowMin)
	}
}

func TestStatOfAnOddName(t *testing.T) {
	line := "4711 (a (b) R 1) S 1 4700 4700 0 -1 4194304 100 0 0 0 150 50 0 0 20 0 3 0 1000 1 1 0"
	want := stat{pid: 4711, group: 4700, state: 'S', cpu: 2 * time.Second}
	if got, err := parseStat([]byte(line)); err != nil || got != want {
		t.Errorf("parseStat = %+v, %v, want %+v", got, err, want)
	}
	if _, err := parseStat([]byte("4711 (a")); err == nil {
		t.Error("half a line is taken")
	}
}

// A program that starts others, as nginx does: all are seen, and none is left.
func TestNothingIsLeftOfAGroup(t *testing.T) {
	p, err := launch("group", "/bin/sh", "-c", "sleep 100 & sleep 100 & echo ready; wait")
	if err != nil {
		t.Fatal(err)
	}
	out, err := p.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := p.start(); err != nil {
		t.Fatal(err)
	}
	defer p.stop()
	if _, err := out.Read(make([]byte, 10)); err != nil {
		t.Fatal(err)
	}
	members, err := p.members()
	if err != nil || len(members) != 3 {
		t.Errorf("%d members, %v, want 3", len(members), err)
	}
	if m, err := p.memory(); err != nil || m.RSS == 0 || m.Peak < m.RSS {
		t.Errorf("memory %+v, %v", m, err)
	}
	p.stop()
	if members, err := p.members(); err != nil || len(members) != 0 {
		t.Errorf("%d members after stop, %v", len(members), err)
	}
	if p.ended() == nil {
		t.Error("a program that was killed still runs")
	}
}

func TestProgramThatEndsSaysWhy(t *testing.T) {
	p, err := launch("broken", "/bin/sh", "-c", "echo port taken >&2; exit 3")
	if err == nil {
		err = p.start()
	}
	if err != nil {
		t.Fatal(err)
	}
	<-p.exited
	if err := p.ended(); err == nil || err.Error() != "broken ended: exit status 3: port taken" {
		t.Errorf("ended = %v", err)
	}
}

// One whole turn through processes: the shortest way and the shortest proxy.
func TestTurnCountsWhatAProxyTakes(t *testing.T) {
	b := &bench{dir: t.TempDir(), workers: 2, plan: plan{warm: 50 * time.Millisecond, window: 300 * time.Millisecond}}
	for _, name := range []string{"origin", "minimal"} {
		if out, err := exec.CommandContext(t.Context(), "go", "build", "-o", b.program(name), "./"+name).CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
	}
	for _, r := range b.rivals()[:2] {
		s, err := b.turn(t.Context(), cell{Protocol: http1, Body: 1 << 10, Conns: 4, Open: true}, r, 0, 200)
		if err != nil {
			t.Fatal(err)
		}
		if s.Sent != 60 && s.Sent != 59 && s.Sent != 61 || s.OK != s.Sent || (s.Memory.Anon > 0) != (r.name == minimal) {
			t.Errorf("%s: %+v", r.name, s)
		}
	}
	_, err := b.turn(t.Context(), cell{Protocol: grpc, Body: 1 << 10, Conns: 1}, b.rivals()[1], 0, 0)
	if err == nil || !strings.Contains(err.Error(), "HTTP/1.1") {
		t.Errorf("gRPC through a proxy that does not know it = %v", err)
	}
	if left, err := filepath.Glob(filepath.Join(b.dir, "turn-*")); err != nil || len(left) > 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
}

func TestConfigurationsAreFilledIn(t *testing.T) {
	for _, proto := range []protocol{http1, grpc} {
		p, err := newPlace(proto, "127.0.0.1:4711", t.TempDir(), 3)
		if err != nil {
			t.Fatal(err)
		}
		for _, name := range []string{"nginx.conf", "haproxy.cfg", "envoy.yaml"} {
			file, err := p.write(name)
			if err != nil {
				t.Fatal(err)
			}
			text, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			if s := string(text); strings.Contains(s, "{{") || !strings.Contains(s, "4711") || !strings.Contains(s, p.Port) {
				t.Errorf("%s for %s:\n%s", name, proto, s)
			}
		}
	}
}

func TestMissingProgramIsNamed(t *testing.T) {
	_, err := printed("no-such-proxy", "-v")(context.Background())
	if err == nil || !strings.Contains(err.Error(), "no-such-proxy") || !strings.Contains(err.Error(), "install.sh") {
		t.Errorf("version = %v", err)
	}
	if got := fmt.Sprint(options{Only: "nginx,txmesh"}.wanted("txmesh tagged"), options{Only: "nginx"}.wanted("envoy"), options{}.wanted("envoy")); got != "true false true" {
		t.Errorf("wanted = %s", got)
	}
}
