package arch

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"path"
	"slices"
	"strings"
	"testing"
)

// module is the path that our own packages begin with.
const module = "txmesh/"

// arrow says what a package may import. Arrows go down only.
type arrow struct {
	from   string   // package, or dir/* for those directly in dir, or dir/... for all below
	to     []string // our packages, in the same notation
	stdlib bool     // and nothing of others
}

// arrows is the table of levels; an exact line stands before the pattern that it excepts itself from.
func arrows() []arrow {
	return []arrow{
		// Level 0: what a transaction is.
		{from: "txn", stdlib: true},
		{from: "txn/barrier", to: []string{"txn"}, stdlib: true},
		// Level 1: what is remembered, what is wanted.
		{from: "txlog", to: []string{"txn"}},
		{from: "txlog/*", to: []string{"txlog", "txn"}},
		{from: "policies", to: []string{"txn"}},
		// Level 2: what drives and what intercepts. The core's driver knows no policy.
		{from: "sidecar/engine", to: []string{"txn", "txn/barrier", "txlog"}},
		{from: "interceptor", to: []string{"txn", "txn/barrier", "txlog", "policies"}},
		// Level 3: doors and callers. Doors never see each other, the journal or the sidecar.
		{from: "interceptor/dtm", to: []string{"txn", "interceptor", "interceptor/dtm/dtmgimp", "policies"}},
		{from: "interceptor/dtm/dtmgimp"}, // generated
		{from: "interceptor/traffic", to: []string{"policies"}},
		{from: "interceptor/proxy", to: []string{"txn", "interceptor", "interceptor/accept", "interceptor/proxy/h2", "interceptor/socket", "interceptor/traffic", "policies"}},
		{from: "interceptor/proxy/h2", to: []string{"interceptor", "interceptor/socket", "interceptor/traffic", "policies"}},
		{from: "interceptor/accept", stdlib: true},
		{from: "interceptor/socket", stdlib: true},
		{from: "interceptor/*", to: []string{"txn", "interceptor", "interceptor/accept"}},
		{from: "sidecar/xds", to: []string{"policies", "sidecar/xds/envoy"}},
		{from: "sidecar/xds/envoy"}, // generated
		{from: "sidecar/takeover", to: []string{"txlog"}},
		{from: "sidecar/identity", to: []string{"interceptor/socket", "sidecar/xds/envoy"}}, // it knows certificates, no transaction
		{from: "sidecar/identity/identitytest"},
		{from: "sidecar/httpd"}, // any handler's server
		{from: "sidecar/*", to: []string{"txn", "txn/barrier", "txlog", "policies", "interceptor", "interceptor/socket", "sidecar/engine"}},
		{from: "controlplane/authority", to: []string{"controlplane/keep"}},
		{from: "controlplane/api", to: []string{"controlplane/authority"}},
		{from: "controlplane/*", to: []string{"txn", "policies"}},
		// Level 4: assembly. The two sides share policies and txn, nothing else.
		{from: "sidecar", to: []string{"txn/...", "txlog/...", "policies", "interceptor/...", "sidecar/..."}},
		{from: "controlplane", to: []string{"txn", "policies", "controlplane/..."}},
		// Level 5: programs.
		{from: "cmd/...", to: []string{"..."}},
		// Beside the levels: what applications link, what shows and what tries.
		{from: "sdk", to: []string{"txn/barrier"}},
		{from: "sdk/dtm", stdlib: true}, // no driver of a database comes with it
		{from: "sdk/dtm/dtmsql", to: []string{"sdk/dtm"}, stdlib: true},
		{from: "sdk/dtm/*", to: []string{"sdk/dtm"}},
		{from: "sdk/...", to: []string{"txn/barrier", "sdk"}},
		{from: "examples/dtm-quickstart", to: []string{"sdk/dtm"}, stdlib: true},
		{from: "examples/...", stdlib: true},
		{from: "tests/...", to: []string{"..."}},
		{from: "benchmarks/...", to: []string{"..."}},
	}
}

// covers reports whether a package is meant by a pattern of the table.
func covers(pattern, pkg string) bool {
	switch {
	case pattern == "...":
		return true
	case strings.HasSuffix(pattern, "/..."):
		dir := strings.TrimSuffix(pattern, "/...")
		return pkg == dir || strings.HasPrefix(pkg, dir+"/")
	case strings.HasSuffix(pattern, "/*"):
		return path.Dir(pkg) == strings.TrimSuffix(pattern, "/*")
	}
	return pattern == pkg
}

// listed is what `go list` says of a package.
type listed struct {
	ImportPath string
}

func goList(dir string, args ...string) ([]listed, error) {
	c := exec.Command("go", append([]string{"list", "-e", "-json=ImportPath"}, args...)...)
	c.Dir = dir
	out, err := c.Output()
	if exit := (*exec.ExitError)(nil); errors.As(err, &exit) {
		return nil, fmt.Errorf("go list %s: %w: %s", strings.Join(args, " "), err, exit.Stderr)
	}
	if err != nil {
		return nil, fmt.Errorf("go list %s: %w", strings.Join(args, " "), err)
	}
	var packages []listed
	for dec := json.NewDecoder(bytes.NewReader(out)); ; {
		var p listed
		if err := dec.Decode(&p); errors.Is(err, io.EOF) {
			return packages, nil
		} else if err != nil {
			return nil, fmt.Errorf("read go list: %w", err)
		}
		packages = append(packages, p)
	}
}

// imports holds every package to its arrows. It reads the files, not the build: those behind tags count as well.
func imports(t tree) ([]finding, error) {
	var found []finding
	for _, s := range t.files {
		if s.isTest() {
			continue
		}
		pkg, table := s.dir(), arrows()
		i := slices.IndexFunc(table, func(a arrow) bool { return covers(a.from, pkg) })
		if i < 0 {
			found = append(found, t.at(s, s.ast.Name, "package %s is not in the table of arrows: say in tests/arch what it may import", pkg))
			continue
		}
		found = append(found, t.crossing(s, table[i])...)
	}
	return found, nil
}

// crossing finds the imports of one file that no arrow leads to.
func (t tree) crossing(s source, a arrow) []finding {
	var found []finding
	for _, spec := range s.ast.Imports {
		name := strings.Trim(spec.Path.Value, `"`)
		ours, isOurs := strings.CutPrefix(name, module)
		allowed := slices.ContainsFunc(a.to, func(to string) bool { return covers(to, ours) })
		switch {
		case isOurs && !allowed:
			found = append(found, t.at(s, spec, "package %s may not import %s", s.dir(), ours))
		case !isOurs && a.stdlib && strings.Contains(strings.Split(name, "/")[0], "."):
			found = append(found, t.at(s, spec, "package %s may import the standard library only, not %s", s.dir(), name))
		}
	}
	return found
}

// TestSidecarStaysSmall: what the sidecar links is its users' memory.
func TestSidecarStaysSmall(t *testing.T) {
	packages, err := goList("../..", "./cmd/...")
	if err != nil {
		t.Fatal(err)
	}
	if !slices.ContainsFunc(packages, func(p listed) bool { return p.ImportPath == module+"cmd/txmesh-sidecar" }) {
		return // it has no code yet
	}
	deps, err := goList("../..", "-deps", "./cmd/txmesh-sidecar")
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range deps {
		if heavy := tooHeavy(p.ImportPath); heavy != "" {
			t.Errorf("txmesh-sidecar links %s, which belongs to %s", p.ImportPath, heavy)
		}
	}
}

func TestHeavyPackagesAreKnown(t *testing.T) {
	for name, want := range map[string]string{
		"k8s.io/client-go/rest":                                "Kubernetes clients",
		"sigs.k8s.io/controller-runtime":                       "Kubernetes clients",
		"go.etcd.io/etcd/server/v3/embed":                      "etcd's server",
		"txmesh/controlplane/console":                          "the control plane",
		"txmesh/examples/bank":                                 "what only tests and demonstrations need",
		"github.com/cockroachdb/datadriven":                    "what only tests and demonstrations need",
		"github.com/envoyproxy/go-control-plane/pkg/server/v3": "the control plane",
		"go.etcd.io/etcd/client/v3":                            "",
		"txmesh/sidecar/engine":                                "",
		"github.com/valyala/fasthttp/fasthttputil":             "",
	} {
		if got := tooHeavy(name); got != want {
			t.Errorf("tooHeavy(%s) = %q, want %q", name, got, want)
		}
	}
}

func tooHeavy(name string) string {
	for _, h := range []struct{ prefix, owner string }{
		{"k8s.io/", "Kubernetes clients"},
		{"sigs.k8s.io/", "Kubernetes clients"},
		{"go.etcd.io/etcd/server/", "etcd's server"},
		{module + "controlplane", "the control plane"},
		{"github.com/envoyproxy/go-control-plane/pkg/", "the control plane"},
		{module + "examples", "what only tests and demonstrations need"},
		{module + "tests", "what only tests and demonstrations need"},
		{"github.com/cockroachdb/datadriven", "what only tests and demonstrations need"},
		{"github.com/rogpeppe/go-internal", "what only tests and demonstrations need"},
		{"pgregory.net/rapid", "what only tests and demonstrations need"},
	} {
		if name == h.prefix || strings.HasPrefix(name, strings.TrimSuffix(h.prefix, "/")+"/") {
			return h.owner
		}
	}
	return ""
}
