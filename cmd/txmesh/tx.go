package main

import (
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/user"
	"strings"
	"time"

	"github.com/spf13/cobra"
)

// txFlags are common to all commands that talk to a sidecar.
type txFlags struct {
	api       string
	tokenFile string
	json      bool
}

func (f *txFlags) client() (*apiClient, error) { return newAPIClient(f.api, f.tokenFile) }

func newTxCommand() *cobra.Command {
	var f txFlags
	c := &cobra.Command{
		Use:   "tx",
		Short: "Look at the transactions of a sidecar, and act on those that are stuck",
		Long: `tx talks to the API of one sidecar, which owns the transactions that began beside it. The address and the file
with the token come from --api and --token-file, or from TXMESH_API and TXMESH_TOKEN_FILE. docs/guide/operate.md
shows how a stuck transaction is brought to its end.`,
	}
	c.PersistentFlags().StringVar(&f.api, "api", cmp.Or(os.Getenv("TXMESH_API"), "127.0.0.1:15820"), "address of the sidecar's API [TXMESH_API]")
	c.PersistentFlags().StringVar(&f.tokenFile, "token-file", os.Getenv("TXMESH_TOKEN_FILE"), "file with the API's token [TXMESH_TOKEN_FILE]")
	c.PersistentFlags().BoolVar(&f.json, "json", false, "print JSON")
	c.AddCommand(newTxListCommand(&f), newTxShowCommand(&f),
		newTxDecideCommand(&f, "commit", "Commit a transaction that was opened over the API"),
		newTxDecideCommand(&f, "abort", "Abort a transaction that is not decided yet"),
		newTxDecideCommand(&f, "hasten", "Try again now what waits for its next try; what is stuck stays so"), newTxStopCommand(&f),
		newTxForceCommand(&f, "retry", "Try a stuck or waiting op again now", "Its cause is removed: the op is tried again at once, with a new budget of tries."),
		newTxForceCommand(&f, "skip", "Count a stuck or waiting op as done", "You have done by hand what the op would have done, or know that it need not be done. Nothing is called."))
	return c
}

func newTxListCommand(f *txFlags) *cobra.Command {
	var filter txFilter
	c := &cobra.Command{
		Use:     "list",
		Short:   "List transactions, newest first",
		Example: "  txmesh tx list --phase stuck --phase aborting",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if filter.limit < 1 {
				return fmt.Errorf("--limit %d is not positive; write a number from 1", filter.limit)
			}
			api, err := f.client()
			if err != nil {
				return err
			}
			found, more, err := api.list(cmd.Context(), filter)
			if err != nil {
				return err
			}
			if f.json {
				return printJSON(cmd.OutOrStdout(), struct {
					Transactions []txSummary `json:"transactions"`
					More         bool        `json:"more,omitempty"`
				}{found, more})
			}
			printList(newScreen(cmd.OutOrStdout(), os.Getenv), found, more, time.Now())
			return nil
		},
	}
	c.Flags().StringArrayVar(&filter.phases, "phase", nil, "only these phases: open, committing, aborting, stuck, committed, aborted, stopped; may be repeated")
	c.Flags().StringVar(&filter.name, "name", "", "only transactions of this name")
	c.Flags().IntVar(&filter.limit, "limit", 20, "how many at most")
	return c
}

func newTxShowCommand(f *txFlags) *cobra.Command {
	return &cobra.Command{
		Use:   "show ID",
		Short: "Show one transaction: its branches, what was tried, its sequence diagram, and what to do next",
		Args:  oneID,
		RunE: func(cmd *cobra.Command, args []string) error {
			api, err := f.client()
			if err != nil {
				return err
			}
			d, text, err := api.show(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			if f.json {
				return indent(cmd.OutOrStdout(), text)
			}
			printTransaction(newScreen(cmd.OutOrStdout(), os.Getenv), d, time.Now())
			return nil
		},
	}
}

func newTxDecideCommand(f *txFlags, word, short string) *cobra.Command {
	return &cobra.Command{
		Use:   word + " ID",
		Short: short,
		Args:  oneID,
		RunE: func(cmd *cobra.Command, args []string) error {
			api, err := f.client()
			if err != nil {
				return err
			}
			o, text, err := api.act(cmd.Context(), args[0], "/"+word, nil)
			if err != nil {
				return err
			}
			if f.json {
				return indent(cmd.OutOrStdout(), text)
			}
			printOutcome(newScreen(cmd.OutOrStdout(), os.Getenv), o)
			return nil
		},
	}
}

func newTxStopCommand(f *txFlags) *cobra.Command {
	var why, by string
	c := &cobra.Command{
		Use:   "stop ID",
		Short: "End a transaction as it stands",
		Long: `Nothing of it is called any more: what was not done or undone by now never is. It is the last resort, for a
transaction that must not go on. The act is journaled with its author and reason.`,
		Args: oneID,
		RunE: func(cmd *cobra.Command, args []string) error {
			if why == "" {
				return errWhy
			}
			api, err := f.client()
			if err != nil {
				return err
			}
			o, text, err := api.act(cmd.Context(), args[0], "/stop", map[string]string{"why": why, "by": by})
			if err != nil {
				return err
			}
			if f.json {
				return indent(cmd.OutOrStdout(), text)
			}
			printOutcome(newScreen(cmd.OutOrStdout(), os.Getenv), o)
			return nil
		},
	}
	reasonFlags(c, &why, &by)
	return c
}

// errWhy says that an act has no reason.
var errWhy = errors.New("--why is missing; say why in a few words: they are journaled with the act")

func reasonFlags(c *cobra.Command, why, by *string) {
	c.Flags().StringVar(why, "why", "", "why you do it; required")
	c.Flags().StringVar(by, "by", userName(), "who you are")
}

func newTxForceCommand(f *txFlags, word, short, long string) *cobra.Command {
	var why, by string
	c := &cobra.Command{
		Use:   word + " ID [BRANCH OP]",
		Short: short,
		Long: long + `
BRANCH and OP (commit, undo, ask or tell; BRANCH "-" is the initiator) may be left out where one op only is stuck.
The act is journaled with its author and reason.`,
		Example: "  txmesh tx " + word + " 0K3V9X2ABCDEF.01JD3ZK... 1 undo --why 'account 7 was reopened'",
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) == 2 || len(args) > 3 {
				return fmt.Errorf("%d arguments; write txmesh tx %s ID, or ID BRANCH OP", len(args), word)
			}
			return oneID(cmd, args[:min(1, len(args))])
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			if why == "" {
				return errWhy
			}
			api, err := f.client()
			if err != nil {
				return err
			}
			branch, op, err := target(cmd, api, args)
			if err != nil {
				return err
			}
			o, text, err := api.act(cmd.Context(), args[0], "/branches/"+branch+"/"+op+"/"+word,
				map[string]string{"why": why, "by": by})
			if err != nil {
				return err
			}
			if f.json {
				return indent(cmd.OutOrStdout(), text)
			}
			printOutcome(newScreen(cmd.OutOrStdout(), os.Getenv), o)
			return nil
		},
	}
	reasonFlags(c, &why, &by)
	return c
}

// target is the op that is meant: as named, or the only one that is stuck.
func target(cmd *cobra.Command, api *apiClient, args []string) (branch, op string, err error) {
	if len(args) == 3 {
		if strings.ContainsAny(args[1]+args[2], "/?#% ") || args[1] == "" || args[2] == "" {
			return "", "", fmt.Errorf("branch %q, op %q: want a number and one of commit, undo, ask and tell", args[1], args[2])
		}
		return args[1], args[2], nil
	}
	d, _, err := api.show(cmd.Context(), args[0])
	if err != nil {
		return "", "", err
	}
	switch stuck := d.stuck(); len(stuck) {
	case 1:
		return stuck[0].branch, stuck[0].op.Op, nil
	case 0:
		return "", "", fmt.Errorf("nothing is stuck in %s, which is %s; name BRANCH and OP to act on one that waits", d.ID, d.Phase)
	default:
		return "", "", fmt.Errorf("%d ops of %s are stuck; name BRANCH and OP, see txmesh tx show %s", len(stuck), d.ID, d.ID)
	}
}

func oneID(_ *cobra.Command, args []string) error {
	if len(args) != 1 {
		return fmt.Errorf("%d arguments; name one transaction, see txmesh tx list", len(args))
	}
	if args[0] == "" || strings.ContainsAny(args[0], "/?# ") {
		return fmt.Errorf("id %q is not the id of a transaction; see txmesh tx list", args[0])
	}
	return nil
}

// userName is how the operator is called in the journal.
func userName() string {
	if u, err := user.Current(); err == nil {
		return u.Username
	}
	return "cli"
}

func printJSON(w io.Writer, v any) error {
	j := json.NewEncoder(w)
	j.SetEscapeHTML(false)
	j.SetIndent("", "  ")
	return j.Encode(v)
}

// indent prints what the API said.
func indent(w io.Writer, text []byte) error {
	var b bytes.Buffer
	if err := json.Indent(&b, bytes.TrimSpace(text), "", "  "); err != nil {
		return fmt.Errorf("read the answer of the API: %w", err)
	}
	b.WriteByte('\n')
	_, err := b.WriteTo(w)
	return err
}
