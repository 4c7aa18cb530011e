package main

import (
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"txmesh/controlplane/api"
)

// statusFlags say which control plane is asked.
type statusFlags struct {
	url, tokenFile, caFile string
	asJSON                 bool
}

func newPolicyStatusCommand() *cobra.Command {
	var f statusFlags
	c := &cobra.Command{
		Use:   "status",
		Short: "Print which sidecars run the policies in force, and exit 1 if one refused them",
		Long: `status asks a control plane which version of the policies is in force and how each sidecar has taken it: who refused
it and why, who still has an older one, and who is connected and no longer answers. It exits 1 if a sidecar refused the
policies, or if the control plane itself did.`,
		Example: `  txmesh policy status --token-file /var/lib/txmesh-controlplane/api-token
  txmesh policy status --control-plane https://controlplane:15810 --ca-file bundle.pem --token-file api-token`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			st, text, err := f.get(cmd.Context())
			if err != nil {
				return err
			}
			if f.asJSON {
				_, err = cmd.OutOrStdout().Write(text)
			} else {
				err = printStatus(cmd.OutOrStdout(), st, time.Now())
			}
			if err != nil {
				return err
			}
			if st.Problem != "" || inState(st, api.Rejected) > 0 {
				return errReported
			}
			return nil
		},
	}
	c.Flags().StringVar(&f.url, "control-plane", cmp.Or(os.Getenv("TXMESH_CONTROL_PLANE"), "http://127.0.0.1:15811"), "URL of the control plane's api port, or https:// of its port for sidecars [TXMESH_CONTROL_PLANE]")
	c.Flags().StringVar(&f.tokenFile, "token-file", os.Getenv("TXMESH_TOKEN_FILE"), "file with the control plane's token [TXMESH_TOKEN_FILE]")
	c.Flags().StringVar(&f.caFile, "ca-file", "", "for https: the mesh's roots, which the control plane keeps in bundle.pem of its data-dir")
	c.Flags().BoolVar(&f.asJSON, "json", false, "print JSON")
	return c
}

// statusMax bounds what is read: some hundred bytes for each sidecar.
const statusMax = 64 << 20

// get returns the status, and the text that it came as.
func (f statusFlags) get(ctx context.Context) (api.Status, []byte, error) {
	var st api.Status
	r, client, err := f.request(ctx)
	if err != nil {
		return st, nil, err
	}
	res, err := client.Do(r)
	if err != nil {
		return st, nil, fmt.Errorf("ask the control plane: %w; is it running, and is this its address?", err)
	}
	text, err := io.ReadAll(io.LimitReader(res.Body, statusMax))
	if err := errors.Join(err, res.Body.Close()); err != nil {
		return st, nil, fmt.Errorf("ask the control plane: %w", err)
	}
	if res.StatusCode != http.StatusOK {
		var problem apiError
		if json.Unmarshal(text, &problem) != nil || problem.Title == "" {
			return st, nil, fmt.Errorf("%s answered %s; is it a control plane?", f.url, res.Status)
		}
		return st, nil, &problem
	}
	if err := json.Unmarshal(text, &st); err != nil {
		return st, nil, fmt.Errorf("%s answered what is no status: %w; is it a control plane?", f.url, err)
	}
	return st, text, nil
}

func (f statusFlags) request(ctx context.Context) (*http.Request, *http.Client, error) {
	u, err := url.Parse(f.url)
	if err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https" || strings.Trim(u.Path, "/") != "" {
		return nil, nil, fmt.Errorf("--control-plane %q is not a URL; write for example http://127.0.0.1:15811", f.url)
	}
	if f.tokenFile == "" {
		return nil, nil, errors.New("--token-file is missing; name the control plane's token file, which its ready line tells")
	}
	token, err := os.ReadFile(f.tokenFile)
	if err != nil {
		return nil, nil, fmt.Errorf("--token-file: %w; name the control plane's token file, which its ready line tells", err)
	}
	client := &http.Client{Timeout: apiTimeout}
	if f.caFile != "" {
		roots := x509.NewCertPool()
		data, err := os.ReadFile(f.caFile)
		if err == nil && !roots.AppendCertsFromPEM(data) {
			err = fmt.Errorf("%s holds no certificate in PEM", f.caFile)
		}
		if err != nil {
			return nil, nil, fmt.Errorf("--ca-file: %w; name the control plane's bundle.pem", err)
		}
		client.Transport = &http.Transport{TLSClientConfig: &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: roots}}
	}
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, u.Scheme+"://"+u.Host+"/v1/status", nil)
	if err != nil {
		return nil, nil, err
	}
	r.Header.Set("Authorization", "Bearer "+strings.TrimSpace(string(token)))
	return r, client, nil
}

func inState(st api.Status, state api.State) int {
	n := 0
	for _, s := range st.Sidecars {
		if s.State == state {
			n++
		}
	}
	return n
}

// printStatus prints the one line that matters, then whoever is not as it should be.
func printStatus(w io.Writer, st api.Status, now time.Time) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	p := &printer{w: t}
	if st.Policies == "" {
		p.write("no policies in force, %d sidecars connected\n", len(st.Sidecars))
	} else {
		p.write("%d of %d sidecars on %s\n", inState(st, api.Accepted), len(st.Sidecars), api.Short(st.Policies))
	}
	if st.Problem != "" {
		p.write("\nnewer policies are not handed out, because\n")
		p.block("  ", st.Problem)
	}
	for _, g := range []struct {
		state   api.State
		meaning string
	}{{api.Rejected, "refused: they keep the policies they had"}, {api.Frozen, "frozen: connected, but they have not answered for two heartbeats"},
		{api.Stale, "stale: they have not answered yet"}} {
		p.group(st, g.state, g.meaning, now)
	}
	for _, r := range st.Replicas {
		if !r.Connected {
			p.write("\nreplica %s is not connected, its sidecars are not counted\n", r.Address)
			p.block("  ", r.Error)
		}
	}
	return errors.Join(p.err, t.Flush())
}

func (p *printer) group(st api.Status, state api.State, meaning string, now time.Time) {
	if inState(st, state) == 0 {
		return
	}
	p.write("\n%s\n", meaning)
	for _, s := range st.Sidecars {
		if s.State != state {
			continue
		}
		on := "on no policies"
		if s.Policies != "" {
			on = "on " + api.Short(s.Policies)
		}
		if s.Since != nil {
			on += ", answered " + now.Sub(*s.Since).Round(time.Second).String() + " ago"
		}
		p.write("  %s\t%s\t%s\t%s\n", s.Service, s.Owner, cmp.Or(s.Inbound, "-"), on)
		p.block("      ", s.Reason)
	}
}

// block writes text that has lines of its own.
func (p *printer) block(indent, text string) {
	for line := range strings.Lines(text) {
		p.write("%s%s\n", indent, strings.TrimRight(line, "\n"))
	}
}
