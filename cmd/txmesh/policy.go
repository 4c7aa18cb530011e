package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/rogpeppe/go-internal/diff"
	"github.com/spf13/cobra"

	"txmesh/policies"
)

func newPolicyCommand() *cobra.Command {
	c := &cobra.Command{
		Use:   "policy",
		Short: "Check, explain and test policies, and see who runs them",
		Args:  cobra.NoArgs, // a misspelt command is an error, not a request for help
		RunE:  func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	c.AddCommand(newPolicyCheckCommand(), newPolicyExplainCommand(), newPolicyTestCommand(), newPolicyStatusCommand())
	return c
}

func newPolicyCheckCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "check FILE...",
		Short: "Print every fault of policy files, and exit 1 if there is one",
		Long: `check reads policy files, or the *.yaml and *.yml files of directories, as the sidecar would, and prints every
finding as file:line:column: code: text. Warnings do not fail it.`,
		Args: cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			set, err := load(cmd.ErrOrStderr(), args)
			if err != nil {
				return err
			}
			fmt.Fprintf(cmd.OutOrStdout(), "%d start rules, %d call rules, %d warnings\n", len(set.Starts()), len(set.Calls()), len(set.Warnings()))
			if n := set.AccessRules(); n > 0 {
				fmt.Fprintf(cmd.OutOrStdout(), "%d access rules\n", n)
			}
			if n := set.TrafficPolicies(); n > 0 {
				fmt.Fprintf(cmd.OutOrStdout(), "%d traffic policies\n", n)
			}
			return nil
		},
	}
}

// load compiles the files and prints what is found.
func load(errs io.Writer, paths []string) (*policies.Set, error) {
	set, err := policies.Load(paths...)
	if fs, ok := errors.AsType[policies.Findings](err); ok {
		report(errs, fs)
		return nil, errReported
	}
	if err != nil {
		return nil, err
	}
	report(errs, set.Warnings())
	return set, nil
}

func report(w io.Writer, fs policies.Findings) {
	for _, f := range fs {
		text := f.Text
		if f.Severity == policies.Warning {
			text = "warning: " + text
		}
		fmt.Fprintf(w, "%s:%d:%d: %s: %s\n    remedy: %s\n", f.File, f.Line, f.Column, f.Code, text, f.Remedy())
	}
}

// explanation is what explain prints: the rules that a request would meet on its way in and on its way out.
type explanation struct {
	Request string                `json:"request"`
	Key     string                `json:"key,omitempty"`
	Inbound *policies.StartPlan   `json:"inbound"`
	Source  string                `json:"outboundFrom,omitempty"` // policy, or the application's headers
	Call    *policies.CallPlan    `json:"outbound"`
	Traffic *policies.TrafficPlan `json:"traffic,omitempty"`
}

func newPolicyExplainCommand() *cobra.Command {
	var headers []string
	var service string
	var asJSON bool
	c := &cobra.Command{
		Use:   "explain METHOD URL FILE...",
		Short: "Print the plan that a request would get",
		Example: `  txmesh policy explain POST http://accounts/accounts/alice/withdrawals --service bank/accounts policy.yaml
  txmesh policy explain POST https://api.pay.example/v1/charges -H 'Idempotency-Key: "k-1"' policies/`,
		Args: cobra.MinimumNArgs(3),
		RunE: func(cmd *cobra.Command, args []string) error {
			set, err := load(cmd.ErrOrStderr(), args[2:])
			if err != nil {
				return err
			}
			e, err := explain(set, args[0], args[1], service, headers)
			if err != nil {
				return err
			}
			if asJSON {
				j := json.NewEncoder(cmd.OutOrStdout())
				j.SetEscapeHTML(false)
				j.SetIndent("", "  ")
				return j.Encode(e)
			}
			return e.print(cmd.OutOrStdout())
		},
	}
	c.Flags().StringArrayVarP(&headers, "header", "H", nil, "a header of the request, 'Name: value'; may be repeated")
	c.Flags().StringVar(&service, "service", "", "the service called, namespace/name; without it rules match by host")
	c.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return c
}

func explain(set *policies.Set, method, url, service string, headers []string) (*explanation, error) {
	target, req, err := policies.TargetOf(method, url, service)
	if err != nil {
		return nil, err
	}
	values := map[string]string{"host": target.Host}
	for _, h := range headers {
		name, value, ok := strings.Cut(h, ":")
		if !ok || strings.TrimSpace(name) == "" {
			return nil, fmt.Errorf("header %q is not 'Name: value'", h)
		}
		values[strings.ToLower(strings.TrimSpace(name))] = strings.TrimSpace(value)
	}
	req.Header = func(name string) string { return values[strings.ToLower(name)] }

	e := &explanation{Request: method + " " + url}
	if service != "" {
		e.Request += " to " + service
	}
	if s := set.Start(target); s != nil {
		plan := s.Plan()
		e.Inbound = &plan
		if !s.Reads().RequestBody {
			if e.Key, err = s.Key(&req); err != nil {
				return nil, err
			}
		}
	}
	if t := set.Traffic(target.Service, target.Host); t != nil {
		plan := t.Plan(target.Method, target.Path)
		e.Traffic = &plan
	}
	call, source := set.Call(target), "policy"
	if call == nil && service != "" {
		if call, err = policies.Inline(service, req.Header); err != nil {
			return nil, err
		}
		source = "the application's headers"
	}
	if call != nil {
		plan := call.Plan()
		e.Call, e.Source = &plan, source
		if e.Key == "" && !call.Reads().RequestBody {
			if e.Key, err = call.Key(&req); err != nil {
				return nil, err
			}
		}
	}
	return e, nil
}

func newPolicyTestCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "test FILE...",
		Short: "Run request and response samples against policies",
		Long: `test compiles the TransactionPolicy documents of the files and runs every case of their PolicyTest documents:
which rule a request meets, what its answer means, and which call would undo it. The format is described in
docs/reference/policy.md. It prints a diff for each expectation that does not hold, and then exits 1.`,
		Args: cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			set, err := load(cmd.ErrOrStderr(), args)
			if err != nil {
				return err
			}
			sources, err := policies.Read(args...)
			if err != nil {
				return err
			}
			samples, err := policies.Samples(sources...)
			if fs, ok := errors.AsType[policies.Findings](err); ok {
				report(cmd.ErrOrStderr(), fs)
				return errReported
			}
			if err != nil {
				return err
			}
			return runSamples(cmd.OutOrStdout(), set, samples)
		},
	}
}

func runSamples(w io.Writer, set *policies.Set, samples []policies.Sample) error {
	if len(samples) == 0 {
		return errors.New("no case found; add a document of kind PolicyTest")
	}
	failed := 0
	for _, s := range samples {
		wrong := s.Run(set)
		if len(wrong) == 0 {
			fmt.Fprintf(w, "ok    %s\n", s.Name)
			continue
		}
		failed++
		fmt.Fprintf(w, "FAIL  %s (%s)\n", s.Name, s.At)
		for _, m := range wrong {
			text := string(diff.Diff("want "+m.Key, []byte(m.Want+"\n"), "got "+m.Key, []byte(m.Got+"\n")))
			_, text, _ = strings.Cut(strings.TrimSpace(text), "\n") // its first line repeats the names
			fmt.Fprintf(w, "      %s\n", strings.ReplaceAll(text, "\n", "\n      "))
		}
	}
	fmt.Fprintf(w, "%d cases, %d failed\n", len(samples), failed)
	if failed > 0 {
		return errReported
	}
	return nil
}
