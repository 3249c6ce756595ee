"""The words of PISTOL-style contracts: values to draw from, and the 20 questions of a kind of contract.

A question is (attribute, plain wording, other wording).
"""

SUFFIXES = ("Corp", "Ltd", "Inc", "LLC", "Group", "Partners", "Holdings", "Works")
STREETS = ("Street", "Avenue", "Road", "Lane", "Drive", "Boulevard", "Court", "Way")
GOODS = (
    "bicycles",
    "printers",
    "blankets",
    "lanterns",
    "umbrellas",
    "violins",
    "kettles",
    "tractors",
    "cameras",
    "carpets",
    "helmets",
    "mattresses",
    "microscopes",
    "pianos",
    "sofas",
    "telescopes",
    "toasters",
    "watches",
    "radios",
    "canoes",
)
LAWS = ("Delaware", "Ontario", "Scotland", "Bavaria", "Texas", "Victoria", "Ireland", "Norway", "Singapore", "Nevada")
JOBS = (
    "accountant",
    "welder",
    "librarian",
    "chemist",
    "electrician",
    "translator",
    "auditor",
    "designer",
    "surveyor",
    "mechanic",
    "nurse",
    "planner",
)
MONTHS = (
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
)

# (attribute, question, the same question in other words); {a} and {b} are the parties.
SALES = (
    (
        "date",
        "When was the sales contract between {a} and {b} signed?",
        "{a} and {b} signed their sales contract on what date?",
    ),
    (
        "seller",
        "Who is the seller in the sales contract between {a} and {b}?",
        "Of {a} and {b}, which one sells under their sales contract?",
    ),
    (
        "seller_address",
        "What is the address of {a} in the sales contract with {b}?",
        "Where is {a} located, according to its sales contract with {b}?",
    ),
    (
        "customer",
        "Who is the customer in the sales contract between {a} and {b}?",
        "Of {a} and {b}, which one buys under their sales contract?",
    ),
    (
        "customer_address",
        "What is the address of {b} in the sales contract with {a}?",
        "Where is {b} located, according to its sales contract with {a}?",
    ),
    (
        "good",
        "What good does {a} sell to {b} under the sales contract?",
        "Under their sales contract, {b} buys which good from {a}?",
    ),
    (
        "quantity",
        "How many units does {b} buy from {a} under the sales contract?",
        "What quantity of the good is sold by {a} to {b} in their sales contract?",
    ),
    (
        "unit_price",
        "What is the unit price in dollars in the sales contract between {a} and {b}?",
        "How many dollars does one unit cost {b} in its sales contract with {a}?",
    ),
    (
        "total_price",
        "What is the total price in dollars in the sales contract between {a} and {b}?",
        "How many dollars does {b} owe {a} in total under their sales contract?",
    ),
    (
        "invoice_days",
        "Within how many days must {a} send {b} the invoice?",
        "{b} must get its invoice from {a} within how many days?",
    ),
    (
        "payment_days",
        "Within how many days must {b} pay {a} after the invoice?",
        "After {a} has sent the invoice, how many days does {b} have to pay?",
    ),
    (
        "penalty_days",
        "After how many days does {b} owe {a} a late penalty?",
        "When {b} pays late, how many days pass before {a} may charge a penalty?",
    ),
    (
        "interest",
        "What annual interest rate in percent does {a} charge {b} on late payments?",
        "Late payments by {b} to {a} bear what interest rate in percent a year?",
    ),
    (
        "delivery_address",
        "To which address must {a} deliver the good for {b}?",
        "Where does {b} want the good delivered by {a}?",
    ),
    (
        "shipping_choice",
        "Who chooses the shipping method in the sales contract between {a} and {b}?",
        "Which of {a} and {b} decides how the good is shipped?",
    ),
    (
        "shipping_cost",
        "Who pays for shipping in the sales contract between {a} and {b}?",
        "Which of {a} and {b} bears the cost of shipping?",
    ),
    (
        "warranty",
        "How many months of warranty does {a} give {b}?",
        "For how many months is the good that {b} bought from {a} under warranty?",
    ),
    (
        "defect_days",
        "Within how many days must {b} notify {a} of defects?",
        "How many days does {b} have to tell {a} about defects?",
    ),
    (
        "cooling_days",
        "How many days is the cooling-off period in the sales contract between {a} and {b}?",
        "For how many days may {b} withdraw from its sales contract with {a}?",
    ),
    (
        "law",
        "Which governing law applies to the sales contract between {a} and {b}?",
        "The sales contract of {a} with {b} is governed by the law of which place?",
    ),
)
EMPLOYMENT = (
    (
        "date",
        "When was the employment contract between {a} and {b} signed?",
        "{a} and {b} signed their employment contract on what date?",
    ),
    (
        "employer",
        "Who is the employer in the employment contract between {a} and {b}?",
        "Of {a} and {b}, which one employs the other?",
    ),
    (
        "employer_address",
        "What is the address of {a} in the employment contract with {b}?",
        "Where is {a} located, according to its employment contract with {b}?",
    ),
    (
        "employee",
        "Who is the employee in the employment contract between {a} and {b}?",
        "Of {a} and {b}, which one works for the other?",
    ),
    (
        "employee_address",
        "What is the address of {b} in the employment contract with {a}?",
        "Where does {b} live, according to the employment contract with {a}?",
    ),
    ("job", "As what does {a} employ {b}?", "What is the job of {b} at {a}?"),
    ("start", "On what date does {b} start to work for {a}?", "The work of {b} for {a} begins on what date?"),
    ("salary", "What is the yearly salary in dollars of {b} at {a}?", "How many dollars a year does {a} pay {b}?"),
    (
        "bonus",
        "What yearly bonus in percent does {a} pay {b}?",
        "{b} gets a yearly bonus of how many percent from {a}?",
    ),
    (
        "hours",
        "How many hours a week does {b} work for {a}?",
        "What is the weekly working time in hours of {b} at {a}?",
    ),
    (
        "vacation",
        "How many vacation days a year does {a} give {b}?",
        "For how many days a year may {b} be away from {a} on vacation?",
    ),
    (
        "sick_days",
        "How many paid sick days a year does {a} give {b}?",
        "{b} is paid by {a} for how many days of sickness a year?",
    ),
    (
        "probation",
        "How many months is the probation of {b} at {a}?",
        "For how many months is {b} on probation with {a}?",
    ),
    (
        "notice",
        "How many days of notice must {b} give {a}?",
        "When {b} wants to leave {a}, how many days ahead must this be said?",
    ),
    ("workplace", "At which address does {b} work for {a}?", "Where is the workplace of {b} at {a}?"),
    ("supervisor", "Who is the supervisor of {b} at {a}?", "To whom does {b} report at {a}?"),
    (
        "equipment",
        "Who pays for the equipment in the employment contract between {a} and {b}?",
        "Which of {a} and {b} bears the cost of the equipment?",
    ),
    (
        "noncompete",
        "For how many months must {b} not compete with {a} after leaving?",
        "After leaving {a}, how many months must {b} wait to compete?",
    ),
    (
        "secrecy",
        "For how many years must {b} keep the secrets of {a}?",
        "How many years does the secrecy of {b} towards {a} last?",
    ),
    (
        "law",
        "Which governing law applies to the employment contract between {a} and {b}?",
        "The employment contract of {a} with {b} is governed by the law of which place?",
    ),
)
