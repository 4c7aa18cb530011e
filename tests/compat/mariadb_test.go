package compat

import (
	"database/sql"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"github.com/go-sql-driver/mysql"
)

// barrierTable is what DTM's documentation has users create, once in a database of its own and, for clients that
// look there, in that of the business.
const barrierTable = `create table %s.barrier (
  id bigint primary key auto_increment,
  trans_type varchar(45) default '', gid varchar(128) default '', branch_id varchar(128) default '',
  op varchar(45) default '', barrier_id varchar(45) default '', reason varchar(45) default '',
  create_time datetime default now(), update_time datetime default now(),
  unique key (gid, branch_id, op, barrier_id)) engine = InnoDB`

// database is a MariaDB with accounts and barriers. Its only user needs no password.
type database struct {
	*sql.DB
	user string
	port int
}

// startMariaDB returns when the server answers.
func startMariaDB(t *testing.T) *database {
	t.Helper()
	dir := t.TempDir()
	data := filepath.Join(dir, "data")
	d := &database{user: "root", port: freePort(t)}
	install := exec.Command("mariadb-install-db", "--no-defaults", "--user="+me(), "--datadir="+data,
		"--auth-root-authentication-method=normal", "--skip-test-db")
	if out, err := install.CombinedOutput(); err != nil {
		t.Fatalf("make the files of MariaDB: %v\n%s", err, out)
	}
	log := filepath.Join(dir, "log")
	begin(t, "MariaDB", exec.Command("mariadbd", "--no-defaults", "--user="+me(), "--datadir="+data, "--bind-address=127.0.0.1",
		"--port="+strconv.Itoa(d.port), "--socket="+filepath.Join(dir, "socket"), "--skip-name-resolve", "--log-error="+log))
	t.Cleanup(func() { show(t, "MariaDB", log) })

	c := mysql.NewConfig()
	c.User, c.Net, c.Addr, c.MultiStatements = d.user, "tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(d.port)), true
	c.Logger = &mysql.NopLogger{} // it would tell of each attempt before the server is up
	connector, err := mysql.NewConnector(c)
	if err != nil {
		t.Fatal(err)
	}
	d.DB = sql.OpenDB(connector)
	t.Cleanup(func() { d.Close() })
	for deadline := time.Now().Add(readyMax); d.PingContext(t.Context()) != nil; time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("MariaDB does not answer after %v", readyMax)
		}
	}
	d.exec(t, `create database dtm_barrier; create database dtm_busi;
		create table dtm_busi.user_account (user_id bigint primary key, balance bigint not null, trading_balance bigint not null default 0) engine = InnoDB;`+
		fmt.Sprintf(barrierTable, "dtm_barrier")+";"+fmt.Sprintf(barrierTable, "dtm_busi"))
	return d
}

func (d *database) exec(t *testing.T, query string, args ...any) {
	t.Helper()
	if _, err := d.ExecContext(t.Context(), query, args...); err != nil {
		t.Fatalf("%s: %v", query, err)
	}
}

// account is what is in one, and what is promised to or from it.
type account struct{ Balance, Reserved int64 }

// account reads one account; one that does not exist is empty.
func (d *database) account(t *testing.T, user int64) account {
	t.Helper()
	var a account
	err := d.QueryRowContext(t.Context(), "select coalesce(sum(balance), 0), coalesce(sum(trading_balance), 0) from dtm_busi.user_account where user_id = ?", user).
		Scan(&a.Balance, &a.Reserved)
	if err != nil {
		t.Fatalf("read account %d: %v", user, err)
	}
	return a
}

func me() string {
	if os.Geteuid() == 0 {
		return "root" // without the word it refuses to run as root
	}
	return os.Getenv("USER")
}

// freePort is one that was free a moment ago: MariaDB cannot tell which it chose itself.
func freePort(t *testing.T) int {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).Port
}
