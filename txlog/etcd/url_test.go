package etcd_test

import (
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"txmesh/txlog/etcd"
)

func TestURLsSayEverything(t *testing.T) {
	for _, tt := range []struct {
		name, url string
		want      etcd.Options
	}{
		{"one member", "etcd://h1:2379", etcd.Options{Endpoints: []string{"h1:2379"}}},
		{"members and prefix", "etcd://h1:2379,[::1]:2380/fleet/a",
			etcd.Options{Endpoints: []string{"h1:2379", "[::1]:2380"}, Prefix: "/fleet/a/"}},
		{"user", "etcd://u:p%40%2F@h:1/?retain=1GiB", etcd.Options{Endpoints: []string{"h:1"}, User: "u", Password: "p@/", RetainBytes: 1 << 30}},
		{"settings", "etcd://h:1?quota=2GiB&request-bytes=4MiB&txn-ops=256&queue=9&try=3s&patience=20s&stall=5s",
			etcd.Options{Endpoints: []string{"h:1"}, QuotaBytes: 2 << 30, BytesMax: 4 << 20, OpsMax: 256, QueueMax: 9,
				Try: 3 * time.Second, Patience: 20 * time.Second, Stall: 5 * time.Second}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got, err := etcd.ParseURL(tt.url)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tt.want, got, cmpopts.IgnoreFields(etcd.Options{}, "TLS", "Log")); diff != "" || got.TLS != nil {
				t.Errorf("options of %s (-want +got):\n%s", tt.url, diff)
			}
		})
	}
	o, err := etcd.ParseURL("etcd://h:1?tls=true")
	if err != nil || o.TLS == nil {
		t.Errorf("TLS = %v, %v; want some", o.TLS, err)
	}
}

func TestWrongURLsAreNamed(t *testing.T) {
	for url, want := range map[string]string{
		"http://h:1":                            "begins with etcd://",
		"etcd://":                               `member "" of the URL: want host:port`,
		"etcd://h1,h2:1":                        `member "h1" of the URL`,
		"etcd://u:se cret%zz@h:1":               "user and password",
		"etcd://h:1?retian=1":                   `retian="1" of the URL: no such setting`,
		"etcd://h:1?retain=much&try=1&tls=2":    `retain="much"`,
		"etcd://h:1?try=1":                      `try="1"`,
		"etcd://h:1?ca=/nowhere":                "ca of the URL",
		"etcd://h:1?cert=/nowhere&key=/nowhere": "cert and key of the URL",
	} {
		_, err := etcd.ParseURL(url)
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q in it", url, err, want)
		}
		if err != nil && strings.Contains(err.Error(), "cret") {
			t.Errorf("%s: %v tells the password", url, err)
		}
	}
}
