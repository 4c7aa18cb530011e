package xds

import (
	"crypto/sha256"
	"encoding/hex"
	"testing"

	cachetypes "github.com/envoyproxy/go-control-plane/pkg/cache/types"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"

	"txmesh/sidecar/xds/envoy"
)

func resourcesOf(t testing.TB, texts map[string]string) map[string]cachetypes.Resource {
	out := map[string]cachetypes.Resource{}
	for name, text := range texts {
		out[name] = policyResource(t, name, text)
	}
	return out
}

// FuzzResources: whatever a control plane sends, it is used or refused, and what is refused changes nothing.
func FuzzResources(f *testing.F) {
	add := func(name string, m proto.Message) {
		data, err := proto.Marshal(m)
		if err != nil {
			f.Fatal(err)
		}
		for i := range uint8(4) {
			f.Add(i, name, data)
		}
	}
	add("bank/a", policyResource(f, "bank/a", good("a", "a")))
	add("bank/ledger", assignment(f, "bank/ledger", ledger))
	add("takeover/x", &envoy.Runtime{Name: "x"})
	add("ROOTCA", &envoy.Secret{})
	f.Fuzz(func(t *testing.T, which uint8, name string, data []byte) {
		c, err := New(Options{Addresses: []string{"127.0.0.1:1"}, Roots: func([]byte) error { return nil }})
		if err != nil {
			t.Fatal(err)
		}
		k := c.kinds[int(which)%len(c.kinds)]
		before := k.good
		problems := k.take(&envoy.DeltaDiscoveryResponse{TypeUrl: k.url,
			Resources: []*envoy.Resource{{Name: name, Version: "1", Resource: &anypb.Any{TypeUrl: k.url, Value: data}}}})
		if _, used := k.good[name]; used != (len(problems) == 0) || len(problems) > 0 && len(k.good) != len(before) {
			t.Errorf("used %v with problems %v", used, problems)
		}
		if text := message(problems); len(text) > messageMax {
			t.Errorf("message of %d bytes", len(text))
		}
	})
}

// FuzzFile: a file is read as it was written, or not at all.
func FuzzFile(f *testing.F) {
	f.Add(encode(nil))
	f.Add(encode(map[string]resources{typePeers: {"a": {Name: "a", Version: "1"}}}))
	f.Add([]byte(fileMagic))
	f.Fuzz(func(t *testing.T, data []byte) {
		answers, err := decode(data)
		if err != nil {
			sum := sha256.Sum256(data) // as the rest of a file whose checksum is right
			if answers, err = decode(append([]byte(fileMagic+hex.EncodeToString(sum[:])+"\n"), data...)); err != nil {
				return
			}
		}
		sets := map[string]resources{}
		for url, res := range answers {
			sets[url] = resources{}
			for _, r := range res.Resources {
				sets[url][r.GetName()] = r
			}
		}
		if _, err := decode(encode(sets)); err != nil {
			t.Errorf("what was read cannot be written: %v", err)
		}
	})
}
